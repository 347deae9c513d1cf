"""The tokenizers of several models in one picker: each request is asked of the one whose model it names.

Adapters belong to the model whose `loraModules` name them; which model an adapter seen on an endpoint is of, nobody can tell where
there are several. Built and started by the application; `tokenize` is called by the director, on the event loop.
"""

import asyncio
from collections.abc import Awaitable, Sequence

from epp.domain import InferenceRequest, TokenizedRequest
from epp.tokenization.tokenization import Tokenization


class Tokenizations:
    """At least one model."""

    def __init__(self, models: Sequence[Tokenization]) -> None:
        """The first answers for what none of them serves."""
        self._models = models

    async def start(self) -> None:
        """Load all, at the same time."""
        await asyncio.gather(*(model.start() for model in self._models))

    async def close(self) -> None:
        """Give back all connections."""
        for model in self._models:
            await model.close()

    def tokenize(self, request: InferenceRequest) -> TokenizedRequest | Awaitable[TokenizedRequest]:
        """As `Tokenization.tokenize`."""
        served = request.served_model
        return next((model for model in self._models if model.serves(served)), self._models[0]).tokenize(request)
