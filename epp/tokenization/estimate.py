"""The backend llm-d falls back to when none is configured: it knows sizes, not tokens.

Estimated ids would never match a block of an engine, so none are given (spec/kv.md 8.16).
"""

from concurrent.futures import Executor

from epp.domain import InferenceRequest
from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.backend import Prompts


class EstimateBackend:
    """Never has token ids."""

    lora_modules: frozenset[str] = frozenset()

    async def start(self, executor: Executor | None) -> None:
        """Nothing to load."""

    def prompts(self, request: InferenceRequest) -> Prompts:
        """Raises NoTokensError."""
        raise NoTokensError(Reason.ESTIMATE, "token-producer has no exact backend configured")

    async def close(self) -> None:
        """Nothing to give back."""
