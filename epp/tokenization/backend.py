"""What gives token ids: the interface of LocalTokenizer, RenderBackend and EstimateBackend."""

from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from epp.domain import InferenceRequest, MediaSpan, TokenIds
from epp.tokenization.absent import NoTokensError


@dataclass(slots=True)
class Prompts:
    """What a backend knows of a request's prompts."""

    ids: Sequence[TokenIds]
    partial: NoTokensError | None = None
    """Why the ids are exact only so far; None: they are all exact."""
    exact: Sequence[int] | None = None
    """Leading ids of each prompt that are exact; None: all."""
    media: Sequence[Sequence[MediaSpan]] = ()
    """Media of each prompt; empty: none."""


class Backend(Protocol):
    """One source of token ids for one model."""

    @property
    def lora_modules(self) -> frozenset[str]:
        """Adapter names the operator configured."""

    async def start(self, executor: Executor | None) -> None:
        """Load what is needed; `executor` runs what would block the loop. Raises TokenizerError: it will never work."""

    def prompts(self, request: InferenceRequest) -> Prompts | Awaitable[Prompts]:
        """Ids of each prompt of a request with a readable body; to be awaited where they take time.

        Raises NoTokensError, here or there.
        """

    async def close(self) -> None:
        """Give back connections."""
