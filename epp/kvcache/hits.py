"""One lookup of a request's prompts in the index, and what it computed for it: made by `index.match`, kept for the decision.

Pure; one instance a request.
"""

from collections.abc import Sequence
from itertools import repeat

from epp.domain import BlockKey, EndpointId, TokenIds, TokenizedRequest
from epp.kvcache.divergence import Prompt
from epp.kvcache.keys import pack_tokens, prompt_keys, request_extras


class Hits:
    """One lookup; keeps the block keys it computed (implements scheduling.interfaces.PrefixHits)."""

    __slots__ = ("_chains", "_endpoints", "_packed", "_request", "block_sizes", "blocks", "confirmed", "tokens")

    def __init__(self, request: TokenizedRequest, endpoints: Sequence[EndpointId], block_sizes: list[int]) -> None:
        self._request = request
        self._endpoints = endpoints
        self._packed = [_packed(prompt) for prompt in request.exact_prompts]
        self._chains: dict[int, list[list[BlockKey]]] = {}
        self.block_sizes = block_sizes
        """Tokens a block of each endpoint asked for."""
        self.blocks = [0] * len(block_sizes)
        """Leading blocks each endpoint holds, of its own block size, summed over the prompts; for explanations."""
        self.confirmed = [0] * len(block_sizes)
        """The same without what is only speculated."""
        self.tokens = [0] * len(block_sizes)
        """Hit tokens an engine would report, summed over the prompts: its last token is always computed (rule 12)."""

    def chains(self, block_size: int) -> list[list[BlockKey]]:
        """Keys of the full blocks of each prompt."""
        chains = self._chains.get(block_size)
        if chains is None:
            request = self._request
            chains = [
                prompt_keys(packed, block_size, lora=request.lora, cache_salt=request.cache_salt, media=media)
                for packed, media in zip(self._packed, request.media or repeat(()), strict=False)
            ]
            self._chains[block_size] = chains
        return chains

    def prompt(self, endpoint: EndpointId, *, reads_cache: bool) -> Prompt | None:
        """What the endpoint is expected to make of the request's prompt; None where there are several, or where it is not known to its end.

        `reads_cache` False: it computes, and stores, all of it anew.
        """
        request, i = self._request, self._endpoints.index(endpoint)
        block_size, cached = self.block_sizes[i], self.confirmed[i] if reads_cache else 0
        if len(self._packed) != 1 or request.exact_tokens is not None:
            return None
        media = request.media[0] if request.media else ()
        extras = request_extras(block_size, request.cache_salt, media)
        return Prompt(self.chains(block_size)[0], self._packed[0], block_size, request.lora, extras, cached)

    def caps(self, block_size: int) -> list[int]:
        """Most blocks of each prompt that can count as a hit."""
        return [max(0, len(prompt) - 1) // block_size for prompt in self._request.prompts]


def _packed(prompt: TokenIds) -> bytes:
    """A prompt with ids no vocabulary has, which the engine will refuse, has no blocks."""
    try:
        return pack_tokens(prompt)
    except (TypeError, ValueError, OverflowError):
        return b""
