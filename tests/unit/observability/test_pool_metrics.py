"""The pool's averages (spec/protocol.md 6.2)."""

from prometheus_client import CollectorRegistry

from epp.domain import Endpoint, EndpointId, EndpointMetrics
from epp.observability.prometheus import PrometheusReporter


def endpoint(name: str, waiting: int, running: int, usage: float) -> Endpoint:
    return Endpoint(EndpointId(f"default/{name}"), "10.0.0.1", 8000, metrics=EndpointMetrics(waiting, running, usage))


def test_averages_and_deviations() -> None:
    """Both names of each family; means with two decimals, sample deviations; an endpoint's series ends with it."""
    registry = CollectorRegistry()
    reporter = PrometheusReporter(registry, pool_name="p", build_ref="test")
    reporter.pool_load([endpoint("a", 2, 1, 0.5), endpoint("b", 5, 1, 0.25), endpoint("c", 5, 1, 0.25)])
    of_pool = {"name": "p"}
    assert registry.get_sample_value("llm_d_epp_average_queue_size", of_pool) == 4
    assert registry.get_sample_value("inference_pool_average_queue_size", of_pool) == 4
    assert registry.get_sample_value("llm_d_epp_average_kv_cache_utilization", of_pool) == 0.33
    assert registry.get_sample_value("inference_pool_average_running_requests", of_pool) == 1
    assert registry.get_sample_value("llm_d_epp_std_dev_queue_size", of_pool) == 3**0.5
    assert registry.get_sample_value("llm_d_epp_std_dev_running_requests", of_pool) == 0
    queue_of_a = {"name": "p", "model_server_endpoint": "default/a"}
    assert registry.get_sample_value("llm_d_epp_per_endpoint_queue_size", queue_of_a) == 2
    assert registry.get_sample_value("inference_pool_per_pod_queue_size", {"name": "p", "model_server_pod": "default/b"}) == 5
    reporter.pool_load([])
    assert registry.get_sample_value("llm_d_epp_average_queue_size", of_pool) == 4
    reporter.pool_load([endpoint("b", 1, 0, 0.0)])
    assert registry.get_sample_value("llm_d_epp_std_dev_queue_size", of_pool) == 0
    reporter.endpoint_removed(EndpointId("default/a"))
    assert registry.get_sample_value("llm_d_epp_per_endpoint_queue_size", queue_of_a) is None


def test_certificate() -> None:
    """When it expires, and how often a change of its files was no use."""
    registry = CollectorRegistry()
    reporter = PrometheusReporter(registry, pool_name="p", build_ref="test")
    reporter.certificate_loaded(1.5e9)
    reporter.certificate_reload_failed()
    assert registry.get_sample_value("epp_tls_cert_expiry_seconds") == 1.5e9
    assert registry.get_sample_value("epp_tls_cert_reload_failures_total") == 1
