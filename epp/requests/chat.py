"""OpenAI chat completions: a conversation.

Only the presence of messages is required here; what vLLM would refuse in them is found where they are rendered
(epp.tokenization), because only the engine may answer for it.
"""

from typing import Final

from epp.domain import Api
from epp.errors import BadRequestError
from epp.requests.shape import Fields, Shape, max_tokens_of


def check(fields: Fields) -> None:
    """Row 4 of spec/protocol.md 1.5.1: messages is a list with something in it."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("invalid chat completions request: must have valid messages field")


CHAT: Final = Shape(Api.CHAT, check, max_tokens_of("max_completion_tokens", "max_tokens"))
