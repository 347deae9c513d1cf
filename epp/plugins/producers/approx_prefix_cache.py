"""approx-prefix-cache-producer: what each endpoint probably holds, from what was sent to it (spec/plugins.md 8.1).

For fleets whose engines publish no KV events. A prompt is cut into blocks, each named by a chain hash that begins with model and
salt; an endpoint is taken to hold the blocks of the requests it got, the latest of them, as many as it has room for. Over
exact token ids where there are any, else over the text (epp.requests.estimate).

As in llm-d: at least 64 tokens a block, the incomplete last block counts, the match ends at the first block nobody holds, and an
endpoint counts every block before that which it holds. A prompt that engines compute anew, whatever they hold, matches nowhere. The hash is Python's, seeded per process, instead of llm-d's XXH64: its
values show nowhere.

Owns its table; changed by `decided` and `endpoint_removed`, on the event loop. Removing an endpoint is O(1): what it held is
freed in slices with the requests that follow.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from epp.domain import Decision, Endpoint, EndpointId, PrefixMatch, TokenState
from epp.kvcache.keys import pack_tokens
from epp.plugins.computes import computing
from epp.plugins.reads_cache import reads_cache
from epp.requests.estimate import TOKEN_BYTES, estimated_prompts
from epp.scheduling.interfaces import Cycle, DataKey, prefix_match_key
from epp.scheduling.params import Between
from epp.scheduling.registry import Collaborators, PluginType, Role

TYPE: Final = "approx-prefix-cache-producer"
DEFAULT_BLOCK_SIZE: Final = 16
MIN_BLOCK_SIZE: Final = 64
DEFAULT_CAPACITY: Final = 31_250

# Blocks of endpoints that have gone which a request frees.
_FREED: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproxPrefixCacheParams:
    """Parameters of approx-prefix-cache-producer."""

    auto_tune: bool = True
    """Take block size and number of blocks from the engines' metrics where they tell them."""
    block_size_tokens: Annotated[int, Between(0, 1 << 20)] = DEFAULT_BLOCK_SIZE
    block_size: Annotated[int, Between(0, 1 << 20)] = 0
    """Deprecated name; counts where the other is at its default."""
    max_prefix_tokens_to_match: Annotated[int, Between(0, 1 << 31)] = 131_072
    """Of each prompt; 0: `max_prefix_blocks_to_match` says it."""
    max_prefix_blocks_to_match: Annotated[int, Between(0, 1 << 31)] = 2048
    """Deprecated; 0: no limit."""
    lru_capacity_per_server: Annotated[int, Between(0, 1 << 31)] = DEFAULT_CAPACITY
    """Blocks an endpoint is taken to hold; 0: the default."""

    def __post_init__(self) -> None:
        if not self.auto_tune and self.unit <= 0:
            raise ValueError("blockSizeTokens: must be above 0 where autoTune is off")

    @property
    def unit(self) -> int:
        """Tokens a block, before the engines are asked."""
        return self.block_size if self.block_size and self.block_size_tokens == DEFAULT_BLOCK_SIZE else self.block_size_tokens


@dataclass(slots=True)
class _Server:
    """What one endpoint is taken to hold, least recently sent first."""

    bit: int
    capacity: int
    held: OrderedDict[int, None]


class ApproxPrefixCacheProducer:
    """Puts a PrefixMatch under its own name."""

    def __init__(self, name: str, params: ApproxPrefixCacheParams, collaborators: Collaborators) -> None:
        self.name = name
        self._params = params
        self._match_key = prefix_match_key(name)
        self._chains_key: DataKey[list[list[int]]] = DataKey("PrefixChains", name)
        self._holders: dict[int, int] = {}
        """Bits of the servers that hold a block."""
        self._servers: dict[EndpointId, _Server] = {}
        self._gone: deque[_Server] = deque()
        self._free_bits: list[int] = []
        self._bits = 0

    def produces(self) -> Sequence[DataKey[Any]]:
        return (self._match_key, self._chains_key)

    def produce(self, cycle: Cycle) -> None:
        self._free()
        prompts = _prompts(cycle)
        if not prompts or not cycle.endpoints:
            return
        size = self._block_size(cycle.endpoints[0])
        chains = [self._chain(cycle, prompt, size) for prompt in prompts]
        reads = reads_cache(cycle.request)
        counts = self._count(chains) if reads else {}
        matched = [counts.get(server.bit, 0) if (server := self._servers.get(e.id)) is not None else 0 for e in cycle.endpoints]
        tokens = sum(len(prompt) // TOKEN_BYTES for prompt in prompts)
        cycle.put(self._chains_key, chains)
        cycle.put(
            self._match_key,
            PrefixMatch(
                size, sum(map(len, chains)), matched, tokens, [min(tokens, blocks * size) for blocks in matched], reads_cache=reads
            ),
        )

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        chains = cycle.get(self._chains_key)
        if chains is None:
            return
        endpoints = {endpoint.id: endpoint for endpoint in cycle.endpoints}
        for endpoint_id in computing(decision):
            server = self._servers.get(endpoint_id) or self._add(endpoints[endpoint_id])
            for chain in chains:
                self._hold(server, chain)

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        server = self._servers.pop(endpoint, None)
        if server is not None:
            self._gone.append(server)

    # --- reading --------------------------------------------------------------------------------------------------

    def _block_size(self, endpoint: Endpoint) -> int:
        tuned = endpoint.metrics.block_size if self._params.auto_tune else None
        return max(tuned or self._params.unit, MIN_BLOCK_SIZE)

    def _chain(self, cycle: Cycle, prompt: bytes, size: int) -> list[int]:
        """Names of the blocks of one prompt, the incomplete last one included."""
        params, request = self._params, cycle.request
        limit = params.max_prefix_tokens_to_match // size if params.max_prefix_tokens_to_match else params.max_prefix_blocks_to_match
        width = size * TOKEN_BYTES
        end = min(len(prompt), limit * width) if limit else len(prompt)
        key = hash((TYPE, "" if request is None else request.served_model, None if request is None else request.cache_salt))
        return [key := hash((key, prompt[start : start + width])) for start in range(0, end, width)]

    def _count(self, chains: Iterable[list[int]]) -> dict[int, int]:
        """Blocks by the bit of the server that holds them."""
        counts: dict[int, int] = {}
        for chain in chains:
            for key in chain:
                held = self._holders.get(key, 0)
                if not held:
                    break
                while held:
                    bit = held & -held
                    counts[bit] = counts.get(bit, 0) + 1
                    held ^= bit
        return counts

    # --- writing --------------------------------------------------------------------------------------------------

    def _add(self, endpoint: Endpoint) -> _Server:
        """Its capacity is that of the moment it is met first, as in llm-d."""
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit, self._bits = 1 << self._bits, self._bits + 1
        tuned = endpoint.metrics.num_blocks if self._params.auto_tune else None
        capacity = tuned or self._params.lru_capacity_per_server or DEFAULT_CAPACITY
        server = self._servers[endpoint.id] = _Server(bit, capacity, OrderedDict())
        return server

    def _hold(self, server: _Server, chain: list[int]) -> None:
        held, holders = server.held, self._holders
        for key in chain:
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = None
                holders[key] = holders.get(key, 0) | server.bit
        while len(held) > server.capacity:
            self._release(server, held.popitem(last=False)[0])

    def _release(self, server: _Server, key: int) -> None:
        others = self._holders[key] & ~server.bit
        if others:
            self._holders[key] = others
        else:
            del self._holders[key]

    def _free(self) -> None:
        left = _FREED
        while self._gone and left:
            server = self._gone[0]
            while server.held and left:
                self._release(server, server.held.popitem()[0])
                left -= 1
            if not server.held:
                self._free_bits.append(self._gone.popleft().bit)


def _prompts(cycle: Cycle) -> list[bytes]:
    """Exact ids, packed, or what stands in for them."""
    tokens = cycle.tokens
    if tokens is not None and tokens.state is not TokenState.ABSENT:
        try:
            return [pack_tokens(prompt) for prompt in tokens.exact_prompts if prompt]
        except (TypeError, ValueError, OverflowError):  # ids no vocabulary has
            return []
    return [] if cycle.request is None else estimated_prompts(cycle.request)


PLUGIN = PluginType(TYPE, ApproxPrefixCacheParams, ApproxPrefixCacheProducer, frozenset((Role.PRODUCER,)))
