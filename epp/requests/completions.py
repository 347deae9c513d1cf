"""OpenAI completions: a text, token ids, or a list of either.

The forms of a prompt are told apart where they are tokenized (epp.tokenization.completions).
"""

from typing import Final

from epp.domain import Api
from epp.errors import BadRequestError
from epp.requests.shape import Fields, Shape, max_tokens_of


def check(fields: Fields) -> None:
    """Row 5 of spec/protocol.md 1.5.1, except that `prompt_embeds` may stand in for a prompt (spec/kv.md 4.2)."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) or (isinstance(prompt, str) and prompt):
        return
    if not prompt and isinstance(prompt, str | None) and fields.get("prompt_embeds"):
        return
    raise BadRequestError("invalid completions request: must have prompt field")


COMPLETIONS: Final = Shape(Api.COMPLETIONS, check, max_tokens_of("max_tokens"))
