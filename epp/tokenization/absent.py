"""Why a request has no token ids: raised anywhere in this room, turned into TokenState.ABSENT by `Tokenization`.

Absent tokens never become fake ones (spec/kv.md 8.16): whoever needs them abstains, and the reason is counted.
"""

from enum import StrEnum

from epp.errors import EppError


class Reason(StrEnum):
    """Low-cardinality reasons, the label values of epp_requests_without_tokens_total."""

    OPAQUE = "opaque"
    """The API has no prompt that is known here."""
    UNREADABLE_BODY = "unreadable_body"
    UNKNOWN_MODEL = "unknown_model"
    """Neither the configured model nor one of its LoRA adapters."""
    TOKENIZER_LOADING = "tokenizer_loading"
    """The tokenizer is not loaded yet: the picker is not ready either."""
    TOKENIZER_FAILED = "tokenizer_failed"
    """The tokenizer could not be loaded; the log says why."""
    MULTIMODAL = "multimodal"
    PROMPT_EMBEDS = "prompt_embeds"
    ENGINE_REFUSES = "engine_refuses"
    """A model server would answer 400: it never computes a block of this prompt."""
    TEMPLATE_ERROR = "template_error"
    """The chat template raised, or does not compile."""
    OTHER_RENDERER = "other_renderer"
    """The engine renders chats of this model type with code of its own (spec/kv.md 4.4)."""
    UNSUPPORTED = "unsupported"
    """Legal, but beyond what is imitated here; `detail` says what."""
    MAX_MODEL_LEN_UNKNOWN = "max_model_len_unknown"
    """The prompt is cut to the engine's context length, which nobody configured."""
    RENDER_UNAVAILABLE = "render_unavailable"
    ESTIMATE = "estimate"
    INTERNAL_ERROR = "internal_error"
    """A bug of ours; the log has its trace."""


class NoTokensError(EppError):
    """There are no exact token ids for this request."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


def refused(detail: str) -> NoTokensError:
    """The error for a request the engine answers with 400."""
    return NoTokensError(Reason.ENGINE_REFUSES, detail)


class TokenizerError(EppError):
    """The tokenizer cannot be loaded or cannot be trusted. `str()` is one sentence that names the place and the remedy."""
