"""core-metrics-extractor: which families of /metrics mean what (spec/plugins.md 12.2). epp.app builds the reader from it.

Scorers find the values in `Endpoint.metrics`; the keys here stand for them, so that a configuration whose scorers read
metrics nobody extracts is refused.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from epp.names import ENGINE_TYPE_LABEL
from epp.plugins.declared import Declared
from epp.scheduling.interfaces import DataKey
from epp.scheduling.params import NOT_YET
from epp.scheduling.registry import PluginType, Role

TYPE = "core-metrics-extractor"

WAITING: DataKey[None] = DataKey("WaitingQueueSize", TYPE)
RUNNING: DataKey[None] = DataKey("RunningRequestsSize", TYPE)
KV_CACHE_USAGE: DataKey[None] = DataKey("KVCacheUsagePercent", TYPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine's families; each spec is `name` or `name{label=value,...}`. A built-in name replaces that engine."""

    name: str
    queued_requests_spec: str = ""
    running_requests_spec: str = ""
    kv_usage_spec: str = ""
    lora_spec: str = ""
    cache_info_spec: str = ""
    cache_block_size_label_name: str = "block_size"
    cache_num_blocks_label_name: str = "num_gpu_blocks"
    cache_block_size_spec: str = ""
    cache_num_blocks_spec: str = ""
    custom_metrics: Annotated[object, NOT_YET] = None

    def __post_init__(self) -> None:
        if self.name == "default":
            raise ValueError("name: 'default' is reserved; choose another name and give it as defaultEngine")
        if not self.queued_requests_spec or not self.running_requests_spec:
            raise ValueError("queuedRequestsSpec, runningRequestsSpec: both are needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMetricsParams:
    """Parameters of core-metrics-extractor."""

    engine_label_key: str = ENGINE_TYPE_LABEL
    default_engine: str = "vllm"
    """For endpoints without the label, or with an engine nobody knows."""
    engine_configs: tuple[EngineConfig, ...] = ()


class CoreMetricsExtractor(Declared):
    """Stands for the values in `Endpoint.metrics`."""

    PROVIDES: ClassVar[tuple[DataKey[Any], ...]] = (WAITING, RUNNING, KV_CACHE_USAGE)


PLUGIN = PluginType(TYPE, CoreMetricsParams, CoreMetricsExtractor, frozenset((Role.METRICS_EXTRACTOR,)), reads_bodies=False)
