"""What a dashboard finds: both names of each family, the limit on model names, series that end with their endpoint."""

from collections.abc import Callable
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from epp.domain import (
    Api,
    Decision,
    EndCause,
    EndpointId,
    InferenceRequest,
    PrefixMatch,
    RequestEnd,
    TokenizedRequest,
    TokenState,
    Usage,
)
from epp.errors import BadRequestError, ServiceUnavailableError
from epp.observability.families import MAX_LABEL_LENGTH, LabelLimit
from epp.observability.prometheus import PrometheusReporter
from epp.observability.request_metrics import MAX_FLOW_SERIES, MAX_SERIES

Decide = Callable[..., Decision]
LABELS = {"model_name": "tiny", "target_model_name": "tiny", "fairness_id": "default-flow", "priority": "0"}
MODELS = {"model_name": "tiny", "target_model_name": "tiny"}
A = EndpointId("team/a")


def request(model: str, flow: str = "default-flow") -> InferenceRequest:
    return InferenceRequest(Api.CHAT, "/v1/chat/completions", model, {}, size_bytes=10, flow=flow)


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


def test_a_stream_that_ends_with_an_error_is_an_error(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """A filter configured wrongly fails every request: that must be seen in metrics. Who is answered or leaves is none."""
    for code in ("OK", "CANCELLED", "INVALID_ARGUMENT", "INTERNAL"):
        reporter.stream_closed(code, 0.1)
    nobody = {"model_name": "", "target_model_name": ""}
    labels = {**nobody, "fairness_id": "default-flow", "priority": "0", "error_code": "Unknown"}
    assert registry.get_sample_value("llm_d_epp_request_error_total", labels) == 2
    assert registry.get_sample_value("inference_objective_request_error_total", {**nobody, "error_code": "Unknown"}) == 2


def test_requests_are_told_apart_by_flow(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """Each has series of its own under the current names; the old ones, which lack the label, have the sum."""
    for flow in ("team-a", "team-a", "team-b"):
        reporter.rejected(request("tiny", flow), BadRequestError("no"))
    value = registry.get_sample_value
    errors = [value("llm_d_epp_request_error_total", {**LABELS, "fairness_id": f"team-{x}", "error_code": "BadRequest"}) for x in "ab"]
    assert errors == [2, 1]
    assert value("inference_objective_request_error_total", {**MODELS, "error_code": "BadRequest"}) == 3


def test_the_number_of_series_is_bounded_whatever_clients_combine(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """A thousand models times a thousand flows would fill the memory: flows that come late are counted together for each model."""
    for model in range(60):
        for flow in range(60):
            reporter.rejected(request(f"m{model}", f"f{flow}"), BadRequestError("no"))
    samples = [s for metric in registry.collect() if metric.name == "llm_d_epp_request_error" for s in metric.samples]
    assert sum(s.value for s in samples) == 3600
    assert len({s.labels["model_name"] for s in samples}) == 60
    assert len([s for s in samples if s.labels["fairness_id"] != "other"]) == MAX_FLOW_SERIES


def test_models_keep_their_series_whatever_flows_there_are(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """Nobody can take them away with a header; names rewritten again and again are bounded, too."""
    for flow in range(1200):
        reporter.rejected(request("m0", f"f{flow}"), BadRequestError("no"))
    for model in range(1200):
        reporter.rejected(request(f"m{model}"), BadRequestError("no"))
    samples = [s for metric in registry.collect() if metric.name == "llm_d_epp_request_error" for s in metric.samples]
    named = [s.labels["model_name"] for s in samples if s.labels["fairness_id"] == "default-flow"]
    assert named[:3] == ["m0", "m1", "m2"]
    assert "other" in named
    assert len(samples) <= MAX_SERIES + 2


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


def page_of(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def buckets(registry: CollectorRegistry, family: str) -> list[float]:
    """Upper bounds of a histogram that has one child."""
    samples = [s for f in text_string_to_metric_families(page_of(registry)) if f.name == family for s in f.samples]
    return [float(s.labels["le"]) for s in samples if s.name == f"{family}_bucket" and s.labels["le"] != "+Inf"]


def test_what_a_streamed_answer_tells(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """Tokens and times, under both names where there are two, where answers go through ext_proc."""
    decision = decide()
    reporter.decided(decision)
    reporter.chunks_came(decision, [0.25, 0.5])
    usage = Usage(100, 21, 121, 0)
    end = RequestEnd(
        decision.id, EndCause.FINISHED, duration_s=4.2, streamed=True, first_chunk_s=0.5, last_chunk_s=4.0, bytes_sent=9, usage=usage
    )
    reporter.ended(decision, end)

    value = registry.get_sample_value
    for new, old, expected in (
        ("request_input_tokens", "input_tokens", 100),
        ("request_output_tokens", "output_tokens", 21),
        ("request_cached_tokens", "prompt_cached_tokens", 0),
        ("request_ntpot_seconds", "normalized_time_per_output_token_seconds", 0.2),
        ("request_duration_seconds", "request_duration_seconds", 4.2),
        ("response_size_bytes", "response_sizes", 9),
    ):
        assert value(f"llm_d_epp_{new}_sum", LABELS) == pytest.approx(expected)
        assert value(f"llm_d_epp_{new}_count", LABELS) == 1
        assert value(f"inference_objective_{old}_sum", MODELS) == pytest.approx(expected)
    assert value("llm_d_epp_request_ttft_seconds_sum", {**LABELS, "streaming": "true"}) == 0.5
    assert value("llm_d_epp_request_streaming_tpot_seconds_sum", LABELS) == pytest.approx(3.5 / 20)
    assert value("llm_d_epp_request_streaming_itl_seconds_sum", LABELS) == 0.75
    assert value("llm_d_epp_request_streaming_itl_seconds_count", LABELS) == 2


def test_what_an_answer_leaves_out_is_not_counted(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """No tokens without usage, none that are zero, no time per token of a document; nothing of an answer that was cut off."""
    decision = decide()
    finished, gone = partial(RequestEnd, decision.id, EndCause.FINISHED), partial(RequestEnd, decision.id, EndCause.CLIENT_GONE)
    for end in (
        finished(usage=Usage(0, 0), streamed=True, first_chunk_s=1.0, last_chunk_s=2.0),
        finished(usage=Usage(completion_tokens=5), streamed=False, first_chunk_s=1.0, last_chunk_s=1.0, duration_s=2.0),
        finished(usage=Usage(completion_tokens=1), streamed=True, first_chunk_s=1.0, last_chunk_s=2.0),
        gone(usage=Usage(7, 7), first_chunk_s=1.0, duration_s=3.0, bytes_sent=9),
    ):
        reporter.decided(decision)
        reporter.ended(decision, end)

    page = page_of(registry)
    for name in ("request_input_tokens", "request_cached_tokens", "request_streaming_tpot_seconds"):
        assert f"llm_d_epp_{name}_sum" not in page
    value = registry.get_sample_value
    assert value("llm_d_epp_request_output_tokens_count", LABELS) == 2
    assert value("llm_d_epp_request_ttft_seconds_count", {**LABELS, "streaming": "false"}) == 1
    assert value("llm_d_epp_request_ttft_seconds_count", {**LABELS, "streaming": "true"}) == 2
    assert value("llm_d_epp_request_duration_seconds_sum", LABELS) == 2.0
    assert value("llm_d_epp_response_size_bytes_count", LABELS) == 0


B1 = "0.005 .025 .05 .1 .2 .4 .6 .8 1 1.25 1.5 2 3 4 5 6 8 10 15 20 30 45 60 120"
B3 = "1 8 16 32 64 128 256 512 1024 2048 4096 8192"
B4 = B3 + " 16384 32778 65536 131072 262144 524288 1048576"


@pytest.mark.parametrize(
    ("family", "bounds"),
    [
        ("llm_d_epp_request_duration_seconds", f"{B1} 180 240 300 360 480 600 900 1200 1800 2700 3600"),
        ("llm_d_epp_request_size_bytes", " ".join(str(64 << k) for k in range(25))),
        ("llm_d_epp_response_size_bytes", f"{B3} 16384 32778 65536"),
        ("llm_d_epp_request_input_tokens", B4),
        ("llm_d_epp_request_output_tokens", B3),
        ("llm_d_epp_request_cached_tokens", B4),
        ("llm_d_epp_request_ntpot_seconds", ".001 .002 .005 .01 .02 .05 .1 .2 .5 1 2 5 10"),
        ("llm_d_epp_request_ttft_seconds", B1),
        ("llm_d_epp_request_streaming_tpot_seconds", ".0005 .00205 .005 .01 .02 .04 .06 .08 .1 .125 .15 .2 .3 .4 .5 .6 .8 1 2"),
        ("llm_d_epp_request_streaming_itl_seconds", ".001 .005 .01 .02 .04 .06 .08 .1 .15 .2 .3 .5 .75 1 2"),
        ("llm_d_epp_request_processing_duration_seconds", ".0005 .001 .002 .005 .01 .015 .025 .04 .06 .1 .25 .5 1 2.5 5 10"),
        ("llm_d_epp_response_processing_duration_seconds", ".0001 .00025 .0005 .001 .0025 .005 .01 .025 .05 .1 .25 .5 1 2.5 5"),
        ("llm_d_epp_extproc_stream_duration_seconds", ".001 .005 .01 .05 .1 .5 1 5 10 30 60 120 300 600"),
        ("inference_objective_prompt_cached_tokens", B4),
    ],
)
def test_buckets(registry: CollectorRegistry, decide: Decide, family: str, bounds: str) -> None:
    """As in spec/protocol.md 6: a quantile means the same as with llm-d, its misspelt 32778 included."""
    reporter = PrometheusReporter(registry, pool_name="pool", build_ref="v1", grpc_stream_metrics=True)
    decision = decide()
    reporter.decided(decision)
    reporter.chunks_came(decision, [0.1])
    times = partial(RequestEnd, duration_s=1.0, first_chunk_s=1.0, last_chunk_s=2.0, bytes_sent=1)
    reporter.ended(decision, times(decision.id, EndCause.FINISHED, streamed=True, usage=Usage(1, 2, 3, 1)))

    assert buckets(registry, family) == [float(bound) for bound in bounds.split()]


def test_a_rewritten_model_has_two_names(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """The one the client used and the one the model server was asked for."""
    decision = decide()
    assert decision.request is not None
    decision.request.target_model = "tiny-v2"
    reporter.decided(decision)
    reporter.rejected(decision.request, ServiceUnavailableError("nobody there"))

    labels = {**LABELS, "target_model_name": "tiny-v2"}
    value = registry.get_sample_value
    assert value("llm_d_epp_request_total", labels) == 1
    assert value("llm_d_epp_request_error_total", {**labels, "error_code": "ServiceUnavailable"}) == 1
    assert value("inference_objective_running_requests", {"model_name": "tiny"}) == 1
    where = {"status": "success", "target_model_name": "tiny-v2", "namespace": "team", "port": "8000", "endpoint_name": "a"}
    assert value("llm_d_epp_scheduler_attempts_total", where) == 1


def test_a_request_routed_before_its_body_has_its_size_in_the_end(
    registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide
) -> None:
    """The access log tells it; nothing runs under an empty model name, as with llm-d."""
    decision = decide("")
    assert decision.request is not None
    decision.request.size_bytes = 0
    reporter.decided(decision)
    reporter.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, bytes_received=77))

    unnamed = {**LABELS, "model_name": "", "target_model_name": ""}
    assert registry.get_sample_value("llm_d_epp_request_size_bytes_sum", unnamed) == 77
    assert registry.get_sample_value("llm_d_epp_request_size_bytes_count", unnamed) == 1
    assert registry.get_sample_value("llm_d_epp_request_running", unnamed) is None


def test_where_and_how_answers_end(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """Retries, other endpoints than the one chosen, and each cause are counted."""
    for cause, attempts, served in (
        (EndCause.FINISHED, 1, "10.0.0.1:8000"),
        (EndCause.FINISHED, 3, "10.0.0.2:8000"),
        (EndCause.UPSTREAM_FAILED, 2, None),
        (EndCause.AGED_OUT, None, None),
    ):
        decision = decide()
        reporter.decided(decision)
        reporter.ended(decision, RequestEnd(decision.id, cause, attempts=attempts, served=served))

    value = registry.get_sample_value
    assert value("epp_retried_requests_total") == 2
    assert value("epp_requests_served_elsewhere_total") == 1
    causes = {cause.value: value("epp_answers_ended_total", {"cause": cause.value}) for cause in EndCause}
    assert causes == {"finished": 2, "client_gone": 0, "upstream_failed": 1, "aged_out": 1}


def test_how_long_phases_take(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """Of requests and of answers, without labels."""
    reporter.request_processed(0.02)
    reporter.response_processed(0.3)
    assert registry.get_sample_value("llm_d_epp_request_processing_duration_seconds_sum") == 0.02
    assert registry.get_sample_value("llm_d_epp_response_processing_duration_seconds_sum") == 0.3


def test_streams_are_counted_if_asked(registry: CollectorRegistry) -> None:
    """--enable-grpc-stream-metrics; codes are spelt as Go does, because alerts on llm-d's metrics are."""
    reporter = PrometheusReporter(registry, pool_name="pool", build_ref="v1", grpc_stream_metrics=True)
    for _ in range(4):
        reporter.stream_opened()
    for code in ("OK", "CANCELLED", "INVALID_ARGUMENT"):
        reporter.stream_closed(code, 0.2)

    value = registry.get_sample_value
    assert value("llm_d_epp_extproc_streams_inflight") == 1
    assert value("llm_d_epp_extproc_stream_duration_seconds_count") == 3
    for code in ("OK", "Canceled", "InvalidArgument"):
        assert value("llm_d_epp_extproc_streams_total", {"code": code}) == 1


def test_streams_are_not_counted_unasked(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """As with llm-d."""
    reporter.stream_opened()
    reporter.stream_closed("OK", 0.2)
    assert "extproc" not in page_of(registry)


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
    reporter.decided(decide())  # it is back under its name
    assert b'endpoint_name="a"' in generate_latest(registry)


def test_a_page_is_valid_and_names_each_family_once(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """Prometheus refuses a page with a family twice, and llm-d has no creation times."""
    reporter.decided(decide())
    reporter.endpoints_changed(2)
    page = generate_latest(registry).decode()
    families = [family.name for family in text_string_to_metric_families(page)]
    assert len(families) == len(set(families))
    assert "_created" not in page
    assert 'inference_pool_ready_pods{name="pool"} 2.0' in page


def test_a_label_a_client_made_up_is_bounded_in_number_and_length() -> None:
    """Model names come from requests; a page of metrics must not grow with what somebody writes there."""
    limit = LabelLimit(limit=2)

    assert [limit.admit(name) for name in ("a", "x" * MAX_LABEL_LENGTH, "b", "a", "")] == ["a", "x" * MAX_LABEL_LENGTH, "other", "a", ""]
    assert LabelLimit().admit("x" * (MAX_LABEL_LENGTH + 1)) == "other"


def test_hit_tokens_as_predicted_and_as_reported(registry: CollectorRegistry, reporter: PrometheusReporter, decide: Decide) -> None:
    """Where engines say what they found in their cache, both sides can be laid over each other."""
    decision = decide()
    decision.prefix = {"p": PrefixMatch(16, 4, [2], 64, [32])}
    decision.scheduled = [decision.endpoint]
    reporter.decided(decision)
    reporter.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, usage=Usage(prompt_tokens=64, cached_tokens=48)))
    labels = {"model": "tiny", "endpoint": decision.endpoint.id}
    assert registry.get_sample_value("epp_parity_hit_tokens_total", {**labels, "said": "predicted"}) == 32
    assert registry.get_sample_value("epp_parity_hit_tokens_total", {**labels, "said": "reported"}) == 48
