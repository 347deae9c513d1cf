"""The pool's averages as llm-d tells them (spec/protocol.md 6.2): over the endpoints whose metrics are fresh, every few seconds.

Used by PrometheusReporter, on the event loop. Without a fresh endpoint the averages stay as they were.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from epp.domain import Endpoint, EndpointId
from epp.observability.families import Families, Twin

_OF: Final[Mapping[str, Callable[[Endpoint], float]]] = MappingProxyType(
    {
        "kv_cache_utilization": lambda endpoint: endpoint.metrics.kv_cache_usage,
        "queue_size": lambda endpoint: endpoint.metrics.waiting,
        "running_requests": lambda endpoint: endpoint.metrics.running,
    }
)


class PoolMetrics:
    """The families of one pool."""

    def __init__(self, families: Families, pool_name: str) -> None:
        self._pool_name = pool_name
        self._averages = {
            what: families.gauge(
                f"llm_d_epp_average_{what}", f"Mean {what.replace('_', ' ')} of the endpoints.", ["name"],
                twin=Twin(f"inference_pool_average_{what}", ["name"]),
            ).labels(pool_name)
            for what in _OF
        }  # fmt: skip
        self._deviations = {
            what: families.gauge(f"llm_d_epp_std_dev_{what}", f"Sample standard deviation of {what.replace('_', ' ')}.", ["name"]).labels(
                pool_name
            )
            for what in _OF
        }
        self._queue = families.gauge(
            "llm_d_epp_per_endpoint_queue_size", "Requests waiting in an endpoint.", ["name", "model_server_endpoint"],
            twin=Twin("inference_pool_per_pod_queue_size", ["name", "model_server_endpoint"], {"model_server_endpoint": "model_server_pod"}),
        )  # fmt: skip
        self._queues_of: set[EndpointId] = set()

    def observe(self, endpoints: Sequence[Endpoint]) -> None:
        """Take a reading of the fresh endpoints."""
        for endpoint in endpoints:
            self._queues_of.add(endpoint.id)
            self._queue.labels(self._pool_name, endpoint.id).set(endpoint.metrics.waiting)
        if not endpoints:
            return
        for what, value_of in _OF.items():
            readings = [value_of(endpoint) for endpoint in endpoints]
            self._averages[what].set(round(statistics.fmean(readings), 2))
            self._deviations[what].set(statistics.stdev(readings) if len(readings) > 1 else 0.0)

    def forget(self, endpoint: EndpointId) -> None:
        """The endpoint has gone."""
        if endpoint in self._queues_of:
            self._queues_of.remove(endpoint)
            self._queue.remove(self._pool_name, endpoint)
