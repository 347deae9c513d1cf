"""The prompts of a completions request, as token ids (spec/kv.md 4.2).

Each prompt is an independent request to the engine; their order is kept. Pure; called once a request.
"""

from collections.abc import Mapping, Sequence

from epp.domain import TokenIds
from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.encoder import Encoder
from epp.tokenization.lax import as_int, bool_field, int_field, object_field
from epp.tokenization.limits import limits_of


def completion_prompts(body: Mapping[str, object], encoder: Encoder, max_model_len: int | None) -> list[TokenIds]:
    """Token ids of each prompt. Raises NoTokensError."""
    if body.get("prompt_embeds"):
        raise NoTokensError(Reason.PROMPT_EMBEDS, "the prompt is given as embeddings")
    if body.get("suffix") is not None:
        raise refused("suffix needs a model that fills in the middle")
    add_special_tokens = bool_field(body, "add_special_tokens", default=True)
    object_field(body, "kv_transfer_params")
    limits = limits_of(body, lambda: _max_output(body), max_model_len)
    return [
        limits.encode(encoder, prompt, add_special_tokens=add_special_tokens)
        if isinstance(prompt, str)
        else checked_ids(limits.cut(prompt), encoder)
        for prompt in prompts_of(body.get("prompt"))
    ]


def _max_output(body: Mapping[str, object]) -> int | None:
    """Tokens to generate; None: none at all, which may be asked for where the prompt is echoed."""
    limit = int_field(body, "max_tokens")
    echoes = body.get("echo") is not None and bool_field(body, "echo", default=False)
    if limit is None:
        return 16  # the model's default, for an explicit null too
    return None if echoes and limit == 0 else limit


def prompts_of(prompt: object) -> Sequence[str | list[int]]:
    """Tell the four forms apart: a text, token ids, a list of texts, a list of token ids."""
    if isinstance(prompt, str) and prompt:
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise refused("prompt must be a text, token ids, or a list of these")
    if all(isinstance(member, str) for member in prompt):
        return prompt
    if all(isinstance(member, list) for member in prompt):
        return [ids_of(member) for member in prompt]
    return [ids_of(prompt)]


def ids_of(members: list[object]) -> list[int]:
    """Token ids; whatever pydantic reads as integers (true, 1.0, "1") is one."""
    ids = [member if type(member) is int else as_int(member) for member in members]
    numbers = [number for number in ids if number is not None and number >= 0]
    if len(numbers) != len(members):
        raise refused("a prompt of token ids must hold nothing but integers from zero on")
    return numbers


def checked_ids(ids: TokenIds, encoder: Encoder) -> TokenIds:
    """The ids, if the engine has all of them in its vocabulary."""
    if ids and (min(ids) < 0 or max(ids) > encoder.max_token_id):
        raise refused("a token id is out of vocabulary")
    return ids
