"""The bound every placement is measured against: one cache that never forgets, shared by all requests.

Definition. Take the requests in the order they were sent. The bound of a request is the number of its leading prompt tokens,
in full blocks, that stand at the same place in the prompt or the answer of a request sent before it; never its last token,
because an engine must compute at least one token to answer (so at most n - 1 rounded down to a block, spec/kv.md 1.13). The
last token an engine generates counts for nobody: it was sent to the client, and never fed back through the model.

It is a bound because no endpoint can hold a block nobody has computed. It is not always within reach: it lets a request use
blocks of another that was sent a moment before and has computed nothing yet. Pure; called once a mode, O(tokens).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from epp.demo.blocks import BlockNames


class Spoken(NamedTuple):
    """The token ids an engine computed for one request."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """All of the answer but the last token generated."""


def hit_tokens(requests: Iterable[Spoken], block_size: int) -> list[int]:
    """The bound of each request, in the order given, which is the order they were sent."""
    names = BlockNames(block_size)
    stored: set[int] = set()
    bounds: list[int] = []
    for prompt, answer in requests:
        # The whole sequence is one chain; its first part is the prompt's.
        chain = names.chain([*prompt, *answer])
        reusable = chain[: max(0, len(prompt) - 1) // block_size]
        held = next((i for i, block in enumerate(reusable) if block not in stored), len(reusable))
        bounds.append(held * block_size)
        stored.update(chain)
    return bounds
