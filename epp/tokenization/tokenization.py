"""Token ids of the requests of one model, or an honest reason why there are none (architecture decision 6).

Decides what can be asked of the backend at all (API, body, model name) and turns every NoTokensError into TokenState.ABSENT
with its reason. Started by the application; `tokenize` is called by the director once a request, on the event loop.
"""

import logging
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from epp.domain import Api, InferenceRequest, TokenizedRequest, TokenState
from epp.tokenization.absent import NoTokensError, Reason, TokenizerError
from epp.tokenization.backend import Backend, Prompts

_log = logging.getLogger(__name__)


class Tokenization:
    """One model, one backend."""

    def __init__(
        self,
        model_name: str,
        backend: Backend,
        *,
        known_loras: Callable[[], frozenset[str]] = frozenset,
        executor: Executor | None = None,
    ) -> None:
        """`model_name` is the served name; `known_loras` gives adapter names seen on the endpoints, in addition to the configured ones.

        `executor` runs long work; None: the event loop's own.
        """
        self._model_name = model_name
        self._backend = backend
        self._known_loras = known_loras
        self._executor = executor
        self.failed: str | None = None
        """Why there will be no tokens from this backend; final."""
        self._loaded = False
        self._bugs: set[str] = set()

    async def start(self) -> None:
        """Load the backend. A failure is logged and kept, and ends nothing: requests are routed without tokens."""
        try:
            await self._backend.start(self._executor)
            self._loaded = True
        except TokenizerError as error:
            self.failed = str(error)
            _log.error("model %s is routed without tokens: %s", self._model_name, error)

    async def close(self) -> None:
        """Give back the backend's connections."""
        await self._backend.close()

    def tokenize(self, request: InferenceRequest) -> TokenizedRequest | Awaitable[TokenizedRequest]:
        """The ids of each prompt, or the reason why not; at once where that takes no time. Never raises for anything a client can send."""
        try:
            lora = self._lora(request)
            prompts = self._backend.prompts(request)
        except Exception as error:  # noqa: BLE001 - a bug here must not cost the request more than its tokens
            return self._absent(error)
        return _tokenized(prompts, lora, request) if isinstance(prompts, Prompts) else self._tokenize_later(prompts, lora, request)

    async def _tokenize_later(self, prompts: Awaitable[Prompts], lora: str | None, request: InferenceRequest) -> TokenizedRequest:
        try:
            return _tokenized(await prompts, lora, request)
        except Exception as error:  # noqa: BLE001 - as in tokenize
            return self._absent(error)

    def _absent(self, error: Exception) -> TokenizedRequest:
        if not isinstance(error, NoTokensError):
            error = self._understood(error)
        return TokenizedRequest(TokenState.ABSENT, reason=error.reason.value, detail=error.detail)

    def _understood(self, error: Exception) -> NoTokensError:
        """The reason for what nobody turned into one. Each place of a bug is logged with its trace once, however often clients find it."""
        if isinstance(error, RecursionError):
            return NoTokensError(Reason.UNSUPPORTED, "the body is nested too deep to be rendered")
        at = traceback.extract_tb(error.__traceback__)[-1]
        if (place := f"{at.filename}:{at.lineno}") not in self._bugs:
            self._bugs.add(place)
            _log.error("tokenizing failed: this is a bug in epp; the request goes on without tokens", exc_info=error)
        return NoTokensError(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

    def _lora(self, request: InferenceRequest) -> str | None:
        """The adapter the request names; None: the base model. Raises NoTokensError for requests no backend is asked about."""
        if request.api is Api.OPAQUE:
            raise NoTokensError(Reason.OPAQUE, f"no tokens are computed for {request.path}")
        if request.api is Api.MESSAGES and request.path.rstrip("/").endswith("/count_tokens"):
            raise NoTokensError(Reason.OPAQUE, "counting tokens computes no blocks")
        if request.body is None:
            raise NoTokensError(Reason.UNREADABLE_BODY, request.unreadable or "the body was not read")
        model = request.served_model
        is_base = model in ("", self._model_name)  # APIs that name no model mean the base model
        if not is_base and model not in self._backend.lora_modules and model not in self._known_loras():
            raise NoTokensError(Reason.UNKNOWN_MODEL, f"{model} is neither {self._model_name} nor one of its adapters")
        if self.failed is not None:
            raise NoTokensError(Reason.TOKENIZER_FAILED, self.failed)
        if not self._loaded:
            raise NoTokensError(Reason.TOKENIZER_LOADING, "the tokenizer is being loaded")
        return None if self._is_base(model) else model

    def serves(self, model: str) -> bool:
        """Whether it is the base model, which also is the one that is meant where none is named, or one of its adapters."""
        return self._is_base(model) or model in self._backend.lora_modules or model in self._known_loras()

    def _is_base(self, model: str) -> bool:
        return model in ("", self._model_name)


def _tokenized(prompts: Prompts, lora: str | None, request: InferenceRequest) -> TokenizedRequest:
    partial = prompts.partial
    return TokenizedRequest(
        TokenState.EXACT if partial is None else TokenState.PARTIAL,
        prompts.ids,
        reason=None if partial is None else partial.reason.value,
        detail=None if partial is None else partial.detail,
        lora=lora,
        cache_salt=request.cache_salt,
        exact_tokens=prompts.exact,
        media=prompts.media,
    )
