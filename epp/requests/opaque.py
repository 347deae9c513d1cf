"""APIs that are routed by model and load alone: their prompts are not turned into tokens here.

Those of OpenAI have the one field spec/protocol.md 1.5.1 (rows 6-8) demands. vLLM's own, which llm-d passes through without a
look, demand nothing: their model is read because it is the label of metrics, and may be an adapter.
"""

from collections.abc import Callable
from typing import Final

from epp.domain import Api
from epp.errors import BadRequestError
from epp.requests.shape import Fields, Shape


def requires(name: str, *keys: str) -> Callable[[Fields], None]:
    """A check for one of `keys`; the first is the one the message names."""

    def check(fields: Fields) -> None:
        if all(fields.get(key) is None for key in keys):
            raise BadRequestError(f"invalid {name} request: must have {keys[0]} field")

    return check


# vLLM also embeds a conversation given as `messages`.
EMBEDDINGS: Final = Shape(Api.OPAQUE, requires("embeddings", "input", "messages"))
CONVERSATIONS: Final = Shape(Api.OPAQUE, requires("conversations", "items"))
IMAGES: Final = Shape(Api.OPAQUE, requires("images generations", "prompt"))
RENDER: Final = Shape(Api.OPAQUE)
NAMED: Final = Shape(Api.OPAQUE, model_is_text=False)
"""Whatever it is: its model is read where it names one."""
