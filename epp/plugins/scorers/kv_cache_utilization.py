"""kv-cache-utilization-scorer: the more free KV cache, the better (spec/plugins.md 5). Stateless."""

from collections.abc import Sequence
from typing import Any

from epp.domain import Endpoint
from epp.plugins.datalayer.core_metrics_extractor import KV_CACHE_USAGE
from epp.scheduling.interfaces import Cycle, DataKey
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators, PluginType, Role


class KVCacheUtilizationScorer:
    """The free share of the KV cache; an endpoint never scraped counts as empty."""

    def __init__(self, name: str, params: NoParams, collaborators: Collaborators) -> None:
        self.name = name

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (KV_CACHE_USAGE,)

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        return [1.0 - endpoint.metrics.kv_cache_usage for endpoint in candidates]


PLUGIN = PluginType("kv-cache-utilization-scorer", NoParams, KVCacheUtilizationScorer, frozenset((Role.SCORER,)), reads_bodies=False)
