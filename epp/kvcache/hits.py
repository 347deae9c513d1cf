"""One lookup of a request's prompts in the index, and what it computed for it: made by `index.match`, kept for the decision.

Pure; one instance a request.
"""

from collections.abc import Sequence
from itertools import repeat

from epp.domain import GPU, BlockKey, EndpointId, TokenIds, TokenizedRequest
from epp.kvcache.divergence import Prompt
from epp.kvcache.keys import pack_tokens, prompt_keys, request_extras


class Hits:
    """One lookup; keeps the block keys it computed (implements scheduling.interfaces.PrefixHits)."""

    __slots__ = ("_chains", "_packed", "_request", "block_sizes", "blocks", "confirmed", "endpoints", "offloaded", "prompts", "tokens")

    def __init__(self, request: TokenizedRequest, endpoints: Sequence[EndpointId], block_sizes: list[int]) -> None:
        self._request = request
        self.endpoints = endpoints
        self._packed = [_packed(prompt) for prompt in request.exact_prompts]
        self._chains: dict[int, list[list[BlockKey]]] = {}
        self.prompts = len(self._packed)
        """How many prompts the request has."""
        self.block_sizes = block_sizes
        """Tokens a block of each endpoint asked for."""
        self.blocks = [0] * len(block_sizes)
        """Leading blocks each endpoint holds, of its own block size, summed over the prompts; for explanations."""
        self.confirmed = [0] * len(block_sizes)
        """The same without what is only speculated, or not in GPU memory: what the engine will not store there again."""
        self.tokens = [0] * len(block_sizes)
        """Hit tokens an engine would report, summed over the prompts: its last token is always computed (rule 12)."""
        self.offloaded: dict[str, list[int]] = {}
        """Those of them that are in other mediums than GPU memory, by medium."""

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

    def prompt(self, endpoint: EndpointId, *, reads_cache: bool, at_most: bool) -> Prompt | None:
        """What the endpoint is expected to make of the request's prompt; None where there are several, or where it is not known to its end.

        `reads_cache` False: it computes, and stores, all of it anew. `at_most`: it may find less than what is confirmed.
        """
        request, i = self._request, self.endpoints.index(endpoint)
        block_size, cached = self.block_sizes[i], self.confirmed[i] if reads_cache else 0
        if len(self._packed) != 1 or request.exact_tokens is not None:
            return None
        media = request.media[0] if request.media else ()
        extras = request_extras(block_size, request.cache_salt, media)
        return Prompt(self.chains(block_size)[0], self._packed[0], block_size, request.lora, extras, cached, at_most)

    def add(self, i: int, prompt: int, end: int, start: int = 0, medium: str = GPU) -> None:
        """Endpoint `i` holds these blocks of one prompt, in its own size."""
        size = self.block_sizes[i]
        cap = max(0, len(self._request.prompts[prompt]) - 1) // size
        tokens = (min(end, cap) - min(start, cap)) * size
        self.blocks[i] += end - start
        self.tokens[i] += tokens
        if medium != GPU:
            self.offloaded.setdefault(medium, [0] * len(self.tokens))[i] += tokens


def _packed(prompt: TokenIds) -> bytes:
    """A prompt with ids no vocabulary has, which the engine will refuse, has no blocks."""
    try:
        return pack_tokens(prompt)
    except (TypeError, ValueError, OverflowError):
        return b""
