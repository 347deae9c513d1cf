"""What routing itself reads of a JSON body: the fields that name, limit or make a request valid, nothing of what messages say.

A completion's `prompt`, and an `input` that is one text, are decoded all the same.

Not compiled (setup.py): msgspec reads the annotations.
"""

from typing import TypedDict

import msgspec


class _Item(msgspec.Struct, gc=False):
    """A message or another object of a list, of which it only matters that it is there."""


# What `messages`, `input` and `items` are in all but odd requests, for which the whole body is read.
_Items = list[_Item] | str | None


class Outline(TypedDict, total=False):
    """The fields that the shapes of epp.requests look at; msgspec passes over all others without making anything of them."""

    model: object
    stream: object
    priority: object
    cache_salt: object
    max_tokens: object
    max_completion_tokens: object
    max_output_tokens: object
    sampling_params: object
    messages: _Items
    input: _Items
    items: _Items
    prompt: object
    prompt_embeds: object
