"""Names of llm-d and its ancestors that are not built here, so that they are told apart from a slip of the pen.

Facts only (spec/plugins.md 1.4, 4, 16.1). A type that gets built needs no change here: the registry is asked first.
"""

from collections.abc import Mapping
from types import MappingProxyType

# Deprecated type strings that mean a type of ours.
ALIASES: Mapping[str, str] = MappingProxyType({"tokenizer": "token-producer"})

# Type strings llm-d no longer accepts, and what took their place.
RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "model-server-protocol-metrics": "core-metrics-extractor",
        "model-server-protocol-models": "models-data-extractor",
        "predicted-latency-scorer": "predicted-latency-producer and latency-scorer",
        "eviction-sheddable-filter": "sheddable-eviction-filter",
        "active-request-filter": "utilization-filter",
    }
)

# Types that another combination replaces already.
REMEDIES: Mapping[str, str] = MappingProxyType(
    {"precise-prefix-cache-scorer": "declare precise-prefix-cache-producer and prefix-cache-scorer instead"}
)

# spec/plugins.md 4, and slo-aware-profile-handler of GIE v1.2.
TYPES = frozenset(
    """
    disaggregatedset-rollout-screener
    label-selector-filter by-label-selector by-label encode-filter decode-filter prefill-filter session-affinity-filter
    multicluster-session-affinity-filter endpoint-attribute-filter topology-affinity-filter utilization-filter
    prefix-cache-affinity-filter slo-headroom-tier-filter header-based-testing-filter context-length-aware
    queue-scorer running-requests-size-scorer kv-cache-utilization-scorer load-aware-scorer lora-affinity-scorer
    active-request-scorer token-load-scorer prefix-cache-scorer precise-prefix-cache-scorer no-hit-lru-scorer
    mm-embeddings-cache-scorer latency-scorer session-affinity-scorer header-label-affinity-scorer
    endpoint-attribute-scorer topology-affinity-scorer multicluster-queue-scorer
    multicluster-kv-cache-utilization-scorer multicluster-prefix-cache-scorer
    max-score-picker random-picker weighted-random-picker
    single-profile-handler data-parallel-profile-handler disagg-profile-handler pd-profile-handler header-profile-handler
    slo-aware-profile-handler disagg-headers-handler prefill-header-handler
    always-disagg-pd-decider prefix-based-pd-decider always-disagg-multimodal-decider
    approx-prefix-cache-producer inflight-load-producer predicted-latency-producer token-producer tokenizer
    mm-embeddings-cache-producer session-id-producer precise-prefix-cache-producer burst-prefix-cache-producer
    p2p-source-producer multicluster-approx-prefix-cache-producer
    latency-slo-admitter probabilistic-admitter
    global-strict-fairness-policy round-robin-fairness-policy program-aware-fairness
    fcfs-ordering-policy edf-ordering-policy slo-deadline-ordering-policy
    static-usage-limit-policy priority-holdback-policy soft-reflective-ceiling-policy
    sheddable-eviction-filter priority-then-time-eviction-order-policy
    utilization-detector concurrency-detector
    metrics-data-source models-data-source k8s-notification-source endpoint-notification-source dcgm-data-source
    multicluster-metrics-data-source
    core-metrics-extractor models-data-extractor dcgm-extractor topology-extractor multicluster-metrics-extractor
    file-discovery multicluster-file-discovery
    openai-parser anthropic-parser vllmhttp-parser sglanghttp-parser vertexai-parser vllmgrpc-parser passthrough-parser
    request-attribute-reporter destination-endpoint-served-verifier agent-identity
    """.split()
)

# Which producer llm-d makes where nobody declared one (spec/plugins.md 1.7).
DEFAULT_PRODUCERS: Mapping[str, str] = MappingProxyType(
    {
        "PrefixCacheMatchInfo": "approx-prefix-cache-producer",
        "InFlightLoad": "inflight-load-producer",
        "LatencyPredictionInfo": "predicted-latency-producer",
        "MultiModalEncoderCacheMatchInfo": "mm-embeddings-cache-producer",
        "TokenizedPrompt": "token-producer",
        "SessionID": "session-id-producer",
    }
)

# Gates: whether switching it on is supported, or None where it has no effect here.
FEATURE_GATES: Mapping[str, bool | None] = MappingProxyType({"flowControl": False, "haPopulateNonLeaderDatastore": None})
REMOVED_GATES: Mapping[str, str] = MappingProxyType(
    {"dataLayer": "is always on", "enableLegacyMetrics": "was removed", "prepareDataPlugins": "is always on"}
)
