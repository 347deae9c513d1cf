"""precise-prefix-cache-producer: how much of the prompt each endpoint holds, as its KV events tell (spec/plugins.md 8.2).

Asks the index once a request and reports in blocks of `blockSizeTokens`, the unit of ratios and counts. Which block size an engine
uses, and which mediums it has blocks in, is the index's business; what those are worth is said here. Where token ids are absent it
abstains: it puts nothing, never a guess. A prompt that engines compute anew, whatever they hold, matches nowhere.

With `speculativeIndexing` the chosen endpoint counts as holding the prompt at once, for `speculativeTTL`, so that the next
request with this prefix follows it before the first event arrives, and longer while its prefill has not been seen to end. An
endpoint that fails a request counts as holding only what its events have shown. The index is told of every decision, and holds what
the endpoint stores against it (epp.kvcache.predictions). Stateless: the index owns the blocks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from epp.domain import CPU, GPU, STORAGE, Api, Decision, EndCause, PrefixMatch, RequestEnd, TokenState, Usage, medium_name
from epp.plugins.computes import computing
from epp.plugins.producers.token import TOKENIZED_PROMPT
from epp.plugins.reads_cache import reads_cache
from epp.scheduling.interfaces import Cycle, DataKey, PrefixHits, prefix_match_key
from epp.scheduling.params import NO_EFFECT, PORT, Between, Duration, Spelled
from epp.scheduling.registry import Collaborators, PluginType, Role

TYPE = "precise-prefix-cache-producer"
DEFAULT_BLOCK_SIZE = 16
DEFAULT_SPECULATIVE_TTL = Duration(2.0)
_COUNTS_PROMPTS = frozenset((Api.CHAT, Api.COMPLETIONS, Api.GENERATE))
# llm-d's, and less for what has to be read from a disk; mediums that nobody lists are taken for no endpoint's own.
MEDIUM_WEIGHTS: Mapping[str, float] = MappingProxyType({GPU: 1.0, CPU: 0.8, STORAGE: 0.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProcessorConfig:
    """`tokenProcessorConfig`. Keys are our own: neither seed nor algorithm of the engine matters (architecture decision 3)."""

    block_size_tokens: Annotated[int, Between(0, 1 << 20)] = 0
    """Tokens a block; 0 or absent: the deprecated name, then 16. Once made, the size that applies."""
    block_size: Annotated[int | None, Between(0, 1 << 20)] = None
    """Deprecated name. Once made, None."""
    hash_seed: Annotated[str, NO_EFFECT] = ""
    hash_algorithm: Annotated[Literal["cbor-fnv", "xxh64"], NO_EFFECT] = "cbor-fnv"

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size_tokens", self.block_size_tokens or self.block_size or DEFAULT_BLOCK_SIZE)
        object.__setattr__(self, "block_size", None)

    @property
    def unit(self) -> int:
        """Tokens a block, of everything that is reported."""
        return self.block_size_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class InMemoryConfig:
    """`inMemoryConfig` of the index."""

    size: int = 100_000_000
    pod_cache_size: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """`redisConfig` of the index."""

    address: str = "redis://127.0.0.1:6379"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAwareMemoryConfig:
    """`costAwareMemoryConfig` of the index."""

    size: str = "2GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBlockIndexConfig:
    """`kvBlockIndexConfig`: how llm-d stores its index; ours is bounded by what the engines hold."""

    in_memory_config: Annotated[InMemoryConfig | None, NO_EFFECT] = None
    redis_config: Annotated[RedisConfig | None, NO_EFFECT] = None
    cost_aware_memory_config: Annotated[CostAwareMemoryConfig | None, NO_EFFECT] = None
    enable_metrics: Annotated[bool, NO_EFFECT] = False
    metrics_logging_interval: Annotated[int, NO_EFFECT] = 0
    """Nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheBackend:
    """How much a block in one medium counts."""

    name: str
    """As engines write it, in any case."""
    weight: Annotated[float, Between(0, 1)] = 1.0
    """0: what is said of the medium is passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerConfig:
    """`indexerConfig`."""

    kv_block_index_config: KVBlockIndexConfig = field(default_factory=KVBlockIndexConfig)
    kv_cache_backend_configs: tuple[KVCacheBackend, ...] = ()
    """Beside MEDIUM_WEIGHTS, or instead of them."""

    MOVED: ClassVar[dict[str, str]] = {
        "tokenProcessorConfig": "stands beside indexerConfig, no longer in it",
        "tokenizersPoolConfig": "no longer exists; token ids come from a token-producer",
    }

    @property
    def weights(self) -> Mapping[str, float]:
        """Of each medium whose blocks count, from best to worst; the GPU's is the first."""
        weights = {**MEDIUM_WEIGHTS} | {medium_name(each.name): each.weight for each in self.kv_cache_backend_configs}
        best_first = sorted(weights.items(), key=lambda item: (item[0] != GPU, -item[1]))
        return {medium: weight for medium, weight in best_first if weight > 0 or medium == GPU}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDiscoveryConfig:
    """`podDiscoveryConfig`: where an endpoint publishes; a data-parallel rank adds its index to both ports."""

    pod_label_selector: Annotated[str, NO_EFFECT] = "llm-d.ai/inference-serving=true"
    pod_namespace: Annotated[str, NO_EFFECT] = ""
    socket_port: Annotated[int | None, PORT] = None
    """None: not given, 5557 then. Labels of an endpoint overrule it (architecture, "Names that are ours")."""
    replay_socket_port: Annotated[int, Between(0, 65535)] = 0
    """0: no replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVEventsConfig:
    """`kvEventsConfig`."""

    zmq_endpoint: str = ""
    """Where engines connect to, as ZMQ writes it ("tcp://*:5557"); empty: nowhere."""
    topic_filter: str = "kv@"
    """Prefix of the ZMQ topics to subscribe to."""
    concurrency: Annotated[int, NO_EFFECT] = 4
    engine_type: Annotated[Literal["vllm", "sglang"], NO_EFFECT] = "vllm"
    """Each event says by its shape whose it is, so one pool may mix engines."""
    discover_pods: bool = True
    """Subscribe to each endpoint."""
    pod_discovery_config: PodDiscoveryConfig = field(default_factory=PodDiscoveryConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisePrefixCacheParams:
    """Parameters of precise-prefix-cache-producer."""

    token_processor_config: TokenProcessorConfig = field(default_factory=TokenProcessorConfig)
    indexer_config: IndexerConfig = field(default_factory=IndexerConfig)
    kv_events_config: KVEventsConfig = field(default_factory=KVEventsConfig)
    speculative_indexing: bool = False
    speculative_ttl: Annotated[Duration, Spelled("speculativeTTL")] = DEFAULT_SPECULATIVE_TTL
    """Not positive: the default, as in llm-d."""

    @property
    def speculative_ttl_s(self) -> float:
        """Seconds that apply."""
        return self.speculative_ttl if self.speculative_ttl > 0 else DEFAULT_SPECULATIVE_TTL


class PrecisePrefixCacheProducer:
    """Puts a PrefixMatch under its own name."""

    def __init__(self, name: str, params: PrecisePrefixCacheParams, collaborators: Collaborators) -> None:
        self.name = name
        self._index = collaborators.index
        self._unit = params.token_processor_config.unit
        self._weights = params.indexer_config.weights
        self._speculative_ttl_s = params.speculative_ttl_s if params.speculative_indexing else 0.0
        self._match_key = prefix_match_key(name)
        self._hits_key: DataKey[PrefixHits] = DataKey("PrefixHits", name)

    def produces(self) -> Sequence[DataKey[Any]]:
        return (self._match_key, self._hits_key)

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (TOKENIZED_PROMPT,)

    def produce(self, cycle: Cycle) -> None:
        tokens = cycle.tokens
        if tokens is None or tokens.state is TokenState.ABSENT:
            return
        hits = self._index.match(tokens, [endpoint.id for endpoint in cycle.endpoints], cycle.now)
        reads = reads_cache(cycle.request)
        unit, matched = self._unit, hits.tokens if reads else [0] * len(hits.tokens)
        cycle.put(self._hits_key, hits)
        cycle.put(
            self._match_key,
            PrefixMatch(
                block_size=unit,
                total_blocks=sum(len(prompt) // unit for prompt in tokens.prompts),
                matched_blocks=[held // unit for held in matched],
                total_tokens=tokens.token_count,
                matched_tokens=matched,
                weighted_blocks=_weighted(hits, self._weights, unit) if reads else None,
                reads_cache=reads,
            ),
        )

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        hits, match = cycle.get(self._hits_key), cycle.get(self._match_key)
        if hits is None or match is None:
            return
        ttl = self._speculative_ttl_s
        endpoints = computing(decision)
        if ttl > 0:
            for endpoint in endpoints:
                self._index.speculate(hits, endpoint, cycle.now + ttl)
        request = decision.request
        model = "" if request is None else request.served_model
        self._index.predict(hits, endpoints[-1], decision.id, model, cycle.now, ttl, reads_cache=match.reads_cache)

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        if end.cause is EndCause.UPSTREAM_FAILED:
            # Or who tries again is sent after blocks that a dead endpoint never computed, each time anew.
            self._index.unspeculate(decision.endpoint.id)
        served = end.cause is EndCause.FINISHED and end.status in (None, 200) and end.served in (None, decision.endpoint.host_port)
        self._index.answer_ended(decision.id, served=served, said=_comparable(decision, end.usage))


def _comparable(decision: Decision, usage: Usage | None) -> Usage | None:
    """What of an answer's usage is about the prompt and the cache of the endpoint that computed it.

    Anthropic's input tokens leave out cached ones, and the Responses API sums up the turns of one answer. What is prefilled elsewhere
    has no hits of its own.
    """
    request = decision.request
    if usage is None or request is None or len(computing(decision)) > 1:
        return None
    prompt = usage.prompt_tokens if request.api in _COUNTS_PROMPTS else None
    return Usage(prompt_tokens=prompt, cached_tokens=usage.cached_tokens)


def _weighted(hits: PrefixHits, weights: Mapping[str, float], unit: int) -> Sequence[float]:
    """Hits in blocks of the unit, each worth as much as the medium it is in; rounded once, and never cut."""
    of_gpu = weights[GPU]
    if not hits.offloaded:
        return [tokens * of_gpu / unit for tokens in hits.tokens]
    worth = []
    for i, tokens in enumerate(hits.tokens):
        elsewhere = [(held[i], weights[medium]) for medium, held in hits.offloaded.items()]
        on_gpu = tokens - sum(held for held, _ in elsewhere)
        worth.append(math.fsum((on_gpu * of_gpu, *(held * weight for held, weight in elsewhere))) / unit)
    return worth


PLUGIN = PluginType(TYPE, PrecisePrefixCacheParams, PrecisePrefixCacheProducer, frozenset((Role.PRODUCER, Role.ENDPOINT_EXTRACTOR)))
