"""What a dashboard finds: both names of each family, the limit on model names, series that end with their endpoint."""

import socket
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from epp.domain import Api, Decision, EndCause, EndpointId, InferenceRequest, RequestEnd, TokenizedRequest, TokenState
from epp.errors import BadRequestError, ConfigError, ServiceUnavailableError
from epp.observability.families import MAX_LABEL_LENGTH, LabelLimit
from epp.observability.prometheus import PrometheusReporter, serve

Decide = Callable[..., Decision]
LABELS = {"model_name": "tiny", "target_model_name": "tiny", "fairness_id": "default-flow", "priority": "0"}
MODELS = {"model_name": "tiny", "target_model_name": "tiny"}
A = EndpointId("team/a")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def reporter(registry: CollectorRegistry) -> PrometheusReporter:
    return PrometheusReporter(registry, pool_name="pool", build_ref="v1")


def request(model: str) -> InferenceRequest:
    return InferenceRequest(Api.CHAT, "/v1/chat/completions", model, {}, size_bytes=10)


def test_a_request_under_both_names(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """Dashboards of llm-d, new and old, find what they ask for."""
    decision = decide()
    reporter.decided(decision)
    value = registry.get_sample_value
    assert value("llm_d_epp_request_total", LABELS) == 1
    assert value("inference_objective_request_total", {**MODELS, "priority": "0"}) == 1
    assert value("llm_d_epp_request_running", LABELS) == 1
    assert value("inference_objective_running_requests", {"model_name": "tiny"}) == 1
    reporter.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, status=200, duration_s=0.3, bytes_sent=900))
    assert value("llm_d_epp_request_running", LABELS) == 0
    assert value("inference_objective_request_duration_seconds_bucket", {**MODELS, "le": "0.4"}) == 1
    assert value("inference_objective_request_duration_seconds_bucket", {**MODELS, "le": "0.2"}) == 0
    assert value("inference_objective_response_sizes_sum", MODELS) == 900
    assert value("inference_objective_request_sizes_bucket", {**MODELS, "le": "128.0"}) == 1
    assert value("llm_d_epp_scheduler_e2e_duration_seconds_bucket", {"le": "0.0005"}) == 1
    where = {"status": "success", "target_model_name": "tiny", "namespace": "team", "port": "8000"}
    assert value("llm_d_epp_scheduler_attempts_total", {**where, "endpoint_name": "a"}) == 1
    assert value("inference_extension_scheduler_attempts_total", {**where, "pod_name": "a"}) == 1
    assert value("inference_extension_info", {"commit": "unknown", "build_ref": "v1"}) == 1


def test_errors_are_counted_by_who_made_them(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """A refusal of ours by its code, an error of the model server by one code; a client that left is no error."""
    for status, cause in ((500, EndCause.FINISHED), (200, EndCause.UPSTREAM_FAILED), (0, EndCause.CLIENT_GONE), (200, EndCause.FINISHED)):
        decision = decide()
        reporter.decided(decision)
        reporter.ended(decision, RequestEnd(decision.id, cause, status=status))
    reporter.rejected(None, BadRequestError("no JSON"))
    reporter.rejected(request("tiny"), ServiceUnavailableError("nobody there"))
    value = registry.get_sample_value
    assert value("llm_d_epp_request_error_total", {**LABELS, "error_code": "ModelServerError"}) == 2
    assert value("inference_objective_request_error_total", {**MODELS, "error_code": "ServiceUnavailable"}) == 1
    unknown = {**LABELS, "model_name": "", "target_model_name": "", "error_code": "BadRequest"}
    assert value("llm_d_epp_request_error_total", unknown) == 1
    failure = {"status": "failure", "target_model_name": "tiny", "endpoint_name": "", "namespace": "", "port": ""}
    assert value("llm_d_epp_scheduler_attempts_total", failure) == 1


def test_a_request_without_a_body_counts_nothing(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """A GET of the model list is no inference request."""
    before = generate_latest(registry)
    decision = decide(body=False)
    reporter.decided(decision)
    reporter.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, status=200, duration_s=0.3))
    assert generate_latest(registry) == before


def test_model_names_are_limited(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """Clients choose model names; series must not grow with them."""
    for i in range(1100):
        reporter.tokenized(request(f"m{i}"), TokenizedRequest(TokenState.ABSENT, reason="unknown_model"))
    value = registry.get_sample_value
    assert value("epp_requests_without_tokens_total", {"model": "m999", "reason": "unknown_model"}) == 1
    assert value("epp_requests_without_tokens_total", {"model": "m1000", "reason": "unknown_model"}) is None
    assert value("epp_requests_without_tokens_total", {"model": "other", "reason": "unknown_model"}) == 100


def test_series_of_an_endpoint_end_with_it(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """A pod that left is not shown for ever; its neighbour stays."""
    before = generate_latest(registry)
    for endpoint in (A, EndpointId("team/b")):
        reporter.scrape_failed(endpoint, "connect")
        reporter.metric_missing(endpoint, "m")
        reporter.kv_stream_state(endpoint, 0, "connecting")
        reporter.kv_stream_state(endpoint, 0, "live")
        reporter.kv_gap(endpoint, 3)
        reporter.index_size(endpoint, 7)
    reporter.decided(decide())
    states = {
        state: registry.get_sample_value("epp_kv_stream_state", {"endpoint": A, "rank": "0", "state": state})
        for state in ("connecting", "live")
    }
    assert states == {"connecting": 0, "live": 1}
    assert b'"team/a"' in generate_latest(registry).replace(before, b"")
    reporter.endpoint_removed(A)
    page = generate_latest(registry)
    assert b'"team/a"' not in page
    assert b'endpoint_name="a"' not in page
    assert b'epp_index_blocks{endpoint="team/b"} 7.0' in page


def test_a_page_is_valid_and_names_each_family_once(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """Prometheus refuses a page with a family twice, and llm-d has no creation times."""
    reporter.decided(decide())
    reporter.endpoints_changed(2)
    page = generate_latest(registry).decode()
    families = [family.name for family in text_string_to_metric_families(page)]
    assert len(families) == len(set(families))
    assert "_created" not in page
    assert 'inference_pool_ready_pods{name="pool"} 2.0' in page


def test_the_page_is_served_until_closed(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """On a port of the system's choice."""
    server = serve(registry, 0, "127.0.0.1")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            assert b"llm_d_epp_info" in answer.read()
    finally:
        server.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_a_taken_port_is_a_sentence(registry: CollectorRegistry) -> None:
    """Flag, address, reason and remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError) as caught:
        serve(registry, taken.getsockname()[1], "127.0.0.1")
    assert "--metrics-port: cannot listen on 127.0.0.1:" in str(caught.value)
    assert "address already in use" in str(caught.value)


def test_a_label_a_client_made_up_is_bounded_in_number_and_length() -> None:
    """Model names come from requests; a page of metrics must not grow with what somebody writes there."""
    limit = LabelLimit(limit=2)

    assert [limit.admit(name) for name in ("a", "x" * MAX_LABEL_LENGTH, "b", "a", "")] == ["a", "x" * MAX_LABEL_LENGTH, "other", "a", ""]
    assert LabelLimit().admit("x" * (MAX_LABEL_LENGTH + 1)) == "other"
