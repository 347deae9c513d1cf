"""How long a prompt may be, and where it is cut (spec/kv.md 4.1).

The engine cuts on the left unless told otherwise, which destroys prefix reuse but must be imitated all the same. Pure; called once a
prompt.
"""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from epp.domain import TokenIds
from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.encoder import Encoder
from epp.tokenization.lax import choice_field, int_field


@dataclass(slots=True)
class Limits:
    """What one request and the engine's context length say about the prompt's length, in tokens."""

    keep: int | None
    """Keep this many tokens; None: all."""
    side: str | None
    """The side that is cut off; None: nobody said, so the left one."""
    max_model_len: int | None

    def encode(self, encoder: Encoder, text: str, *, add_special_tokens: bool) -> TokenIds:
        """Ids of a text. Raises NoTokensError where the engine refuses its length."""
        if self.max_model_len is not None:
            text = self._cut_text(text, self.max_model_len * encoder.max_chars_per_token)
        ids: TokenIds = encoder.encode(text)
        if add_special_tokens:
            if self.keep is not None and self.side is None:
                # Cut by the tokenizer itself, which leaves room for its special tokens.
                room = self.keep - len(encoder.prefix) - len(encoder.suffix)
                ids = _last(ids, room) if room >= 0 else ids
            ids = array("I", [*encoder.prefix, *ids, *encoder.suffix]) if encoder.prefix or encoder.suffix else ids
        return self.cut(ids)

    def cut(self, ids: TokenIds) -> TokenIds:
        """The ids the engine keeps. Raises NoTokensError where it refuses their number."""
        if self.keep is not None and self.keep < len(ids):
            ids = ids[: self.keep] if self.side == "right" else _last(ids, self.keep)
        if self.max_model_len is not None and len(ids) > self.max_model_len:
            raise refused(f"the prompt has more than {self.max_model_len} tokens")
        if not ids:
            raise refused("the prompt has no tokens")
        return ids

    def _cut_text(self, text: str, max_chars: int) -> str:
        if len(text) <= max_chars:
            return text
        if self.keep is None:
            raise refused(f"the prompt has more than {max_chars} characters")
        if self.side is None:
            return text
        return text[:max_chars] if self.side == "right" else text[-max_chars:]


def _last(ids: TokenIds, count: int) -> TokenIds:
    return ids[len(ids) - count :] if count < len(ids) else ids


def limits_of(body: Mapping[str, object], max_output: Callable[[], int | None], max_model_len: int | None) -> Limits:
    """The limits of a request; `max_output` reads the number of tokens it may generate.

    Raises NoTokensError where the engine refuses them, or where they depend on a context length nobody configured.
    """
    keep = int_field(body, "truncate_prompt_tokens")
    side = choice_field(body, "truncation_side", ("left", "right"))
    output = max_output()
    if output is not None and output < 1:
        raise refused("less than one token to generate")
    if keep is not None and keep < -1:
        raise refused("truncate_prompt_tokens must be at least -1")
    if max_model_len is None:
        if keep == -1:
            raise NoTokensError(Reason.MAX_MODEL_LEN_UNKNOWN, "truncate_prompt_tokens -1 needs maxModelLen in the local parameters")
        return Limits(keep, side, None)
    if output is not None and output > max_model_len:
        raise refused(f"more than {max_model_len} tokens to generate")
    if keep is not None and keep > max_model_len:
        raise refused(f"truncate_prompt_tokens is greater than {max_model_len}")
    if keep == -1:
        # One token of context is held back for the answer.
        keep = max_model_len - 1 if output else max_model_len
    return Limits(keep, side, max_model_len)
