"""OpenAI APIs that are routed by model and load alone: their prompts are not turned into tokens here.

Each has the one field spec/protocol.md 1.5.1 (rows 6-8) demands; the render APIs demand only a model.
"""

from collections.abc import Callable, Mapping
from typing import Final

from epp.domain import Api
from epp.errors import BadRequestError
from epp.requests.shape import Shape, accept


def _requires(name: str, *keys: str) -> Callable[[Mapping[str, object]], None]:
    """A check for one of `keys`; the first is the one the message names."""

    def check(fields: Mapping[str, object]) -> None:
        if all(fields.get(key) is None for key in keys):
            raise BadRequestError(f"invalid {name} request: must have {keys[0]} field")

    return check


# vLLM also embeds a conversation given as `messages`.
EMBEDDINGS: Final = Shape(Api.OPAQUE, _requires("embeddings", "input", "messages"))
RESPONSES: Final = Shape(Api.OPAQUE, _requires("responses", "input"), ("max_output_tokens",))
CONVERSATIONS: Final = Shape(Api.OPAQUE, _requires("conversations", "items"))
IMAGES: Final = Shape(Api.OPAQUE, _requires("images generations", "prompt"))
RENDER: Final = Shape(Api.OPAQUE, accept)
