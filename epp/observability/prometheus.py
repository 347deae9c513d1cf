"""What Prometheus is told: llm-d's request families under both their names (spec/protocol.md 6.1-6.3), and ours (`epp_...`).

`PrometheusReporter` is a reporter over one CollectorRegistry; `serve` puts a registry on a port. Only families that this
picker has data for are there. A request costs about ten updates of series whose children are resolved once per model and
endpoint. The series of an endpoint end with it, so `endpoint_removed` must be the last that is reported about one.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics import MetricWrapperBase

from epp.domain import Decision, EndCause, EndpointId, InferenceRequest, RequestEnd, TokenizedRequest, TokenState
from epp.errors import ConfigError, InternalError, RequestError, ResourceExhaustedError, ServiceUnavailableError
from epp.observability.families import Families, LabelLimit, Twin
from epp.reporter import Reporter

_M = TypeVar("_M", bound=MetricWrapperBase)

# Bucket sets B1, B2, B3 and B6 of spec/protocol.md 6; 32778 is llm-d's own spelling of 32768, and dashboards select by it.
DURATION_BUCKETS: Sequence[float] = (
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480,
    600, 900, 1200, 1800, 2700, 3600,
)  # fmt: skip
REQUEST_SIZE_BUCKETS: Sequence[float] = tuple(float(64 << k) for k in range(25))
RESPONSE_SIZE_BUCKETS: Sequence[float] = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536)
SCHEDULER_BUCKETS: Sequence[float] = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)

MODEL_LABELS = ("model_name", "target_model_name")
REQUEST_LABELS = (*MODEL_LABELS, "fairness_id", "priority")
# Values of the last two until flows and objectives exist: what llm-d gives a request that names neither.
NO_FLOW = ("default-flow", "0")

# error_code of an answer that the model server, not the picker, made an error.
MODEL_SERVER_ERROR = "ModelServerError"


@dataclass(slots=True)
class _ModelSeries:
    """The children a request of one model updates."""

    total: Counter
    running: Gauge
    request_size: Histogram
    response_size: Histogram
    duration: Histogram


class PrometheusReporter(Reporter):
    """Counts. Runs on the event loop; the registry may be read from any thread."""

    def __init__(self, registry: CollectorRegistry, *, pool_name: str, build_ref: str, commit: str = "unknown") -> None:
        families = Families(registry)
        self._models = LabelLimit()
        self._by_model: dict[str, _ModelSeries] = {}
        self._by_endpoint: dict[EndpointId, dict[tuple[MetricWrapperBase, tuple[str, ...]], MetricWrapperBase]] = {}
        self._stream_states: dict[tuple[EndpointId, int], str] = {}
        self._make_request_families(families)
        self._make_scheduler_families(families)
        self._make_families_of_ours(families)
        ready = families.gauge(
            "llm_d_epp_ready_endpoints", "Endpoints in the pool.", ["name"], twin=Twin("inference_pool_ready_pods", ["name"])
        )
        self._ready = ready.labels(pool_name)
        info = families.gauge(
            "llm_d_epp_info", "Build of this picker; always 1.", ["commit", "build_ref"],
            twin=Twin("inference_extension_info", ["commit", "build_ref"]),
        )  # fmt: skip
        info.labels(commit, build_ref).set(1)

    def _make_request_families(self, families: Families) -> None:
        def old(name: str, *more: str) -> Twin:
            return Twin(f"inference_objective_{name}", (*MODEL_LABELS, *more))

        self._total = families.counter(
            "llm_d_epp_request_total", "Requests an endpoint was chosen for.", REQUEST_LABELS, twin=old("request", "priority")
        )
        self._errors = families.counter(
            "llm_d_epp_request_error_total",
            "Requests that ended in an error, of this picker or of a model server.",
            (*REQUEST_LABELS, "error_code"),
            twin=old("request_error", "error_code"),
        )
        self._duration = families.histogram(
            "llm_d_epp_request_duration_seconds", "From the request's arrival at Envoy to the end of its answer.", REQUEST_LABELS,
            buckets=DURATION_BUCKETS, twin=old("request_duration_seconds"),
        )  # fmt: skip
        self._request_size = families.histogram(
            "llm_d_epp_request_size_bytes", "Size of request bodies.", REQUEST_LABELS,
            buckets=REQUEST_SIZE_BUCKETS, twin=old("request_sizes"),
        )  # fmt: skip
        self._response_size = families.histogram(
            "llm_d_epp_response_size_bytes", "Size of answers.", REQUEST_LABELS,
            buckets=RESPONSE_SIZE_BUCKETS, twin=old("response_sizes"),
        )  # fmt: skip
        self._running = families.gauge(
            "llm_d_epp_request_running",
            "Requests whose answer has not ended.",
            REQUEST_LABELS,
            twin=Twin("inference_objective_running_requests", ["model_name"]),
        )

    def _make_scheduler_families(self, families: Families) -> None:
        self._scheduling = families.histogram(
            "llm_d_epp_scheduler_e2e_duration_seconds", "Time of one scheduling cycle.",
            buckets=SCHEDULER_BUCKETS, twin=Twin("inference_extension_scheduler_e2e_duration_seconds"),
        )  # fmt: skip
        labels = ["status", "target_model_name", "endpoint_name", "namespace", "port"]
        self._attempts = families.counter(
            "llm_d_epp_scheduler_attempts_total", "Scheduling cycles and where they led.", labels,
            twin=Twin("inference_extension_scheduler_attempts", labels, renamed={"endpoint_name": "pod_name"}),
        )  # fmt: skip
        old = "llm_d_inference_scheduler_datalayer"
        labels = ["source_type"]
        self._poll_errors = families.counter(
            "llm_d_epp_datalayer_poll_errors_total", "Polls of a data source that failed.", labels, twin=Twin(f"{old}_poll_errors", labels)
        )
        labels = ["source_type", "extractor_type"]
        self._extract_errors = families.counter(
            "llm_d_epp_datalayer_extract_errors_total", "Metrics that a page lacks.", labels, twin=Twin(f"{old}_extract_errors", labels)
        )

    def _make_families_of_ours(self, families: Families) -> None:
        counter = families.counter
        self._without_tokens = counter(
            "epp_requests_without_tokens_total", "Requests routed without token ids, so without prefix.", ["model", "reason"]
        )
        self._unmatched = counter(
            "epp_unmatched_access_log_entries_total", "Access-log entries that belong to no open decision.", ["reason"]
        )
        self._plugin_errors = counter("epp_plugin_errors_total", "Exceptions of plugins.", ["plugin"])
        self._scrape_errors = counter("epp_scrape_errors_total", "Scrapes of /metrics that failed.", ["endpoint", "reason"])
        self._missing = counter("epp_scrape_missing_metrics_total", "Metrics an endpoint's page lacks.", ["endpoint", "metric"])
        self._event_errors = counter("epp_kv_event_errors_total", "KV events that could not be decoded or applied.", ["reason"])
        self._gaps = counter("epp_kv_gaps_total", "Gaps in the sequence of KV events.", ["endpoint"])
        self._stream_state = families.gauge(
            "epp_kv_stream_state", "1 for the state a KV-event stream is in.", ["endpoint", "rank", "state"]
        )
        self._blocks = families.gauge("epp_index_blocks", "Confirmed blocks the index holds.", ["endpoint"])

    # --- a request ----------------------------------------------------------------------------------------------

    def tokenized(self, request: InferenceRequest, tokens: TokenizedRequest) -> None:
        if tokens.state is TokenState.ABSENT:
            self._without_tokens.labels(self._models.admit(request.model), tokens.reason or "unknown").inc()

    def decided(self, decision: Decision) -> None:
        request = decision.request
        if request is None:
            return
        model = self._models.admit(request.model)
        series = self._of_model(model)
        series.total.inc()
        series.request_size.observe(request.size_bytes)
        if model:
            series.running.inc()
        self._scheduling.observe(decision.duration_s)
        endpoint = decision.endpoint
        namespace, _, name = endpoint.id.partition("/")
        self._of_endpoint(endpoint.id, self._attempts, ("success", model, name, namespace, str(endpoint.port))).inc()

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        model = self._models.admit(request.model) if request is not None else ""
        self._errors.labels(model, model, *NO_FLOW, error.code).inc()
        if request is not None and isinstance(error, ServiceUnavailableError | ResourceExhaustedError | InternalError):
            self._attempts.labels("failure", model, "", "", "").inc()

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        if decision.request is None:
            return
        model = self._models.admit(decision.request.model)
        series = self._of_model(model)
        if model:
            series.running.dec()
        if end.duration_s is not None:
            series.duration.observe(end.duration_s)
        if end.bytes_sent is not None:
            series.response_size.observe(end.bytes_sent)
        if end.cause is EndCause.UPSTREAM_FAILED or (end.status is not None and end.status >= 400):
            self._errors.labels(model, model, *NO_FLOW, MODEL_SERVER_ERROR).inc()

    def unmatched_end(self, reason: str) -> None:
        self._unmatched.labels(reason).inc()

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        self._plugin_errors.labels(plugin).inc()

    # --- knowledge ----------------------------------------------------------------------------------------------

    def endpoints_changed(self, count: int) -> None:
        self._ready.set(count)

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        for metric, labels in self._by_endpoint.pop(endpoint, {}):
            metric.remove(*labels)
        for key in [key for key in self._stream_states if key[0] == endpoint]:
            del self._stream_states[key]

    def scrape_failed(self, endpoint: EndpointId, reason: str) -> None:
        self._of_endpoint(endpoint, self._scrape_errors, (endpoint, reason)).inc()
        self._poll_errors.labels("metrics-data-source").inc()

    def metric_missing(self, endpoint: EndpointId, metric: str) -> None:
        self._of_endpoint(endpoint, self._missing, (endpoint, metric)).inc()
        self._extract_errors.labels("metrics-data-source", "core-metrics-extractor").inc()

    def kv_stream_state(self, endpoint: EndpointId, rank: int, state: str) -> None:
        before = self._stream_states.get((endpoint, rank))
        if before is not None and before != state:
            self._of_endpoint(endpoint, self._stream_state, (endpoint, str(rank), before)).set(0)
        self._stream_states[endpoint, rank] = state
        self._of_endpoint(endpoint, self._stream_state, (endpoint, str(rank), state)).set(1)

    def kv_gap(self, endpoint: EndpointId, missing: int) -> None:
        self._of_endpoint(endpoint, self._gaps, (endpoint,)).inc()

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        self._event_errors.labels(reason).inc()

    def index_size(self, endpoint: EndpointId, blocks: int) -> None:
        self._of_endpoint(endpoint, self._blocks, (endpoint,)).set(blocks)

    # --- children, resolved once --------------------------------------------------------------------------------

    def _of_model(self, model: str) -> _ModelSeries:
        series = self._by_model.get(model)
        if series is None:
            labels = (model, model, *NO_FLOW)
            series = self._by_model[model] = _ModelSeries(
                total=self._total.labels(*labels),
                running=self._running.labels(*labels),
                request_size=self._request_size.labels(*labels),
                response_size=self._response_size.labels(*labels),
                duration=self._duration.labels(*labels),
            )
        return series

    def _of_endpoint(self, endpoint: EndpointId, metric: _M, labels: tuple[str, ...]) -> _M:
        """The child with these labels, remembered so that it goes when the endpoint goes."""
        children = self._by_endpoint.setdefault(endpoint, {})
        child = children.get((metric, labels))
        if child is None:
            child = children[metric, labels] = metric.labels(*labels)
        return cast("_M", child)


class MetricsServer:
    """A registry on a port, served by prometheus_client's own threads until `close`."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port it listens on; the one the system chose where 0 was asked for."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening. Blocks for up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(registry: CollectorRegistry, port: int, host: str = "0.0.0.0") -> MetricsServer:  # noqa: S104  # Prometheus asks from outside
    """Serve the registry over HTTP. Raises ConfigError where the port cannot be had."""
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--metrics-port: cannot listen on {host}:{port}: {reason}; give a free port, or 0 for any") from None
    return MetricsServer(server, thread)
