"""What gives token ids: the interface of LocalTokenizer, RenderBackend and EstimateBackend."""

from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor
from typing import Protocol

from epp.domain import InferenceRequest, TokenIds


class Backend(Protocol):
    """One source of token ids for one model."""

    @property
    def lora_modules(self) -> frozenset[str]:
        """Adapter names the operator configured."""

    async def start(self, executor: Executor | None) -> None:
        """Load what is needed; `executor` runs what would block the loop. Raises TokenizerError: it will never work."""

    def prompts(self, request: InferenceRequest) -> Sequence[TokenIds] | Awaitable[Sequence[TokenIds]]:
        """Exact ids of each prompt of a chat or completions request with a readable body; to be awaited where they take time.

        Raises NoTokensError, here or there.
        """

    async def close(self) -> None:
        """Give back connections."""
