"""What Prometheus is told: llm-d's families under both their names (spec/protocol.md 6.1-6.3, 6.6), and ours (`epp_...`).

`PrometheusReporter` is a reporter over one CollectorRegistry; `metrics_server` puts a registry on a port. The request families are
in request_metrics.py. Only families that this picker has data for are there. A request costs about ten updates of series whose children are resolved once per model and
endpoint. The series of an endpoint end with it, so `endpoint_removed` must be the last that is reported about one.
"""

from collections.abc import Sequence
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry

from epp.domain import Decision, EndCause, Endpoint, EndpointId, InferenceRequest, ParityLoss, RequestEnd, TokenizedRequest, TokenState
from epp.errors import InternalError, RequestError, ResourceExhaustedError, ServiceUnavailableError
from epp.observability.families import Families, LabelLimit, Twin
from epp.observability.instruments import Counter, Family, Gauge, Histogram
from epp.observability.pool_metrics import PoolMetrics
from epp.observability.request_metrics import TTFT_BUCKETS, RequestMetrics
from epp.reporter import Reporter

_S = TypeVar("_S", Counter, Gauge, Histogram)

_AnyFamily = Family[Counter] | Family[Gauge] | Family[Histogram]

# Bucket set B6 of spec/protocol.md 6, and the one of 6.6.
SCHEDULER_BUCKETS: Sequence[float] = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
STREAM_BUCKETS: Sequence[float] = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)

# How an ext_proc stream ends whose request was answered, by somebody, or given up by its client.
_NO_ERRORS = frozenset(("OK", "CANCELLED"))


class PrometheusReporter(Reporter):
    """Counts. Runs on the event loop; the registry may be read from any thread."""

    def __init__(
        self, registry: CollectorRegistry, *, pool_name: str, build_ref: str, commit: str = "unknown", grpc_stream_metrics: bool = False
    ) -> None:
        """`grpc_stream_metrics`: count the ext_proc streams too (--enable-grpc-stream-metrics)."""
        families = Families(registry)
        self._models = LabelLimit()
        self._requests = RequestMetrics(families, self._models)
        self._streams = _StreamMetrics(families) if grpc_stream_metrics else None
        self._by_endpoint: dict[EndpointId, set[tuple[_AnyFamily, tuple[str, ...]]]] = {}
        self._stream_states: dict[tuple[EndpointId, int], str] = {}
        # Series of `_attempts` by endpoint and model, because their labels cost more than the counting.
        self._chosen: dict[EndpointId, dict[str, Counter]] = {}
        self._make_scheduler_families(families)
        self._make_families_of_ours(families)
        ready = families.gauge(
            "llm_d_epp_ready_endpoints",
            "Endpoints in the pool that take connections, as far as is known; 0 where none does, though all get requests then.",
            ["name"],
            twin=Twin("inference_pool_ready_pods", ["name"]),
        )
        self._ready = ready.labels(pool_name)
        self._pool = PoolMetrics(families, pool_name)
        self._certificate_expiry = families.gauge(
            "epp_tls_cert_expiry_seconds", "Unix time at which the certificate of the gRPC port expires."
        ).labels()
        self._certificate_failures = families.counter(
            "epp_tls_cert_reload_failures_total", "Changes of the certificate's files that could not be used."
        ).labels()
        info = families.gauge(
            "llm_d_epp_info", "Build of this picker; always 1.", ["commit", "build_ref"],
            twin=Twin("inference_extension_info", ["commit", "build_ref"]),
        )  # fmt: skip
        info.labels(commit, build_ref).set(1)

    def _make_scheduler_families(self, families: Families) -> None:
        self._scheduling = families.histogram(
            "llm_d_epp_scheduler_e2e_duration_seconds", "Time of one scheduling cycle.",
            buckets=SCHEDULER_BUCKETS, twin=Twin("inference_extension_scheduler_e2e_duration_seconds"),
        ).labels()  # fmt: skip
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
        self._retried = counter("epp_retried_requests_total", "Requests the data plane sent to endpoints more than once.").labels()
        self._elsewhere = counter(
            "epp_requests_served_elsewhere_total", "Requests served by another endpoint than the first one chosen."
        ).labels()
        ends = counter("epp_answers_ended_total", "Answers whose end was told, or given up waiting for.", ["cause"])
        self._end_causes = {cause: ends.labels(cause.value) for cause in EndCause}
        self._plugin_errors = counter("epp_plugin_errors_total", "Exceptions of plugins.", ["plugin"])
        self._scrape_errors = counter("epp_scrape_errors_total", "Scrapes of /metrics that failed.", ["endpoint", "reason"])
        self._missing = counter("epp_scrape_missing_metrics_total", "Metrics an endpoint's page lacks.", ["endpoint", "metric"])
        self._event_errors = counter("epp_kv_event_errors_total", "KV events that could not be decoded or applied.", ["reason"])
        self._gaps = counter("epp_kv_gaps_total", "Gaps in the sequence of KV events.", ["endpoint"])
        self._stream_state = families.gauge(
            "epp_kv_stream_state", "1 for the state a KV-event stream is in.", ["endpoint", "rank", "state"]
        )
        self._parity = counter(
            "epp_parity_predictions_total",
            "Requests whose prompt blocks its endpoint's events confirmed, contradicted, or left unseen.",
            ["model", "endpoint", "result"],
        )
        self._parity_lost = families.gauge(
            "epp_parity_lost",
            "1 while engines do not do what is expected of most of a model's requests, with the likely cause (docs/parity.md).",
            ["model", "cause"],
        )
        self._alarms: dict[str, tuple[str, str]] = {}
        """Labels of the series that each model's alarm raises: beyond the label limit, models share some."""
        self._prompt_tokens = counter(
            "epp_parity_prompt_tokens_total",
            "Answers whose number of prompt tokens is ours, or differs.",
            ["model", "endpoint", "result"],
        )
        self._counted_hits = counter(
            "epp_parity_counted_hit_tokens_total",
            "Cached tokens of some prompts, as expected at least and as the engine's counter tells, which counts other requests too.",
            ["endpoint", "said"],
        )
        self._hits = counter(
            "epp_parity_hit_tokens_total",
            "Cached tokens of prompts, as predicted here and as reported by engines.",
            ["model", "endpoint", "said"],
        )
        self._prefill = families.histogram(
            "epp_prefill_seconds",
            "From a decision to its prompt's last full block being stored; prompts that were cached whole store none.",
            ["model"],
            buckets=TTFT_BUCKETS,
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
        series = self._requests.decided(request)
        self._scheduling.observe(decision.duration_s)
        endpoint = decision.endpoint
        by_model = self._chosen.get(endpoint.id)
        if by_model is None:
            by_model = self._chosen[endpoint.id] = {}
        chosen = by_model.get(series.target)
        if chosen is None:
            namespace, _, name = endpoint.id.partition("/")
            where = ("success", series.target, name, namespace, str(endpoint.port))
            chosen = by_model[series.target] = self._of_endpoint(endpoint.id, self._attempts, where)
        chosen.inc()

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        self._requests.rejected(request, error)
        if request is not None and isinstance(error, ServiceUnavailableError | ResourceExhaustedError | InternalError):
            self._attempts.labels("failure", self._requests.of(request).target, "", "", "").inc()

    def chunks_came(self, decision: Decision, gaps_s: Sequence[float]) -> None:
        if decision.request is not None:
            self._requests.chunks_came(decision.request, gaps_s)

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        if decision.request is None:
            return
        self._requests.ended(decision.request, end)
        self._end_causes[end.cause].inc()
        if end.attempts is not None and end.attempts > 1:
            self._retried.inc()
        if end.usage is not None and end.usage.cached_tokens is not None:
            self._count_hits(decision, end.usage.cached_tokens)
        if end.served is not None and end.served != decision.endpoint.host_port:
            self._elsewhere.inc()

    def _count_hits(self, decision: Decision, reported: int) -> None:
        """What was predicted, beside what the engine says it found."""
        endpoint = decision.endpoint
        for match in decision.prefix.values():
            where = self._models.admit(decision.request.served_model if decision.request else ""), endpoint.id
            predicted = match.matched_tokens[list(decision.scheduled).index(endpoint)]
            self._of_endpoint(endpoint.id, self._hits, (*where, "predicted")).inc(predicted)
            self._of_endpoint(endpoint.id, self._hits, (*where, "reported")).inc(reported)
            return

    def unmatched_end(self, reason: str) -> None:
        self._unmatched.labels(reason).inc()

    # --- ext_proc streams ---------------------------------------------------------------------------------------

    def stream_opened(self) -> None:
        if self._streams is not None:
            self._streams.opened()

    def stream_closed(self, grpc_code: str, seconds: float) -> None:
        if grpc_code not in _NO_ERRORS:
            self._requests.stream_failed()
        if self._streams is not None:
            self._streams.closed(grpc_code, seconds)

    def request_processed(self, seconds: float) -> None:
        self._requests.request_processed(seconds)

    def response_processed(self, seconds: float) -> None:
        self._requests.response_processed(seconds)

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        self._plugin_errors.labels(plugin).inc()

    # --- knowledge ----------------------------------------------------------------------------------------------

    def endpoints_changed(self, count: int) -> None:
        self._ready.set(count)

    def endpoint_unreachable(self, endpoint: EndpointId, left: int) -> None:
        self._ready.set(left)

    def endpoint_reachable(self, endpoint: EndpointId, count: int) -> None:
        self._ready.set(count)

    def pool_load(self, endpoints: Sequence[Endpoint]) -> None:
        self._pool.observe(endpoints)

    def certificate_loaded(self, expires_at: float) -> None:
        self._certificate_expiry.set(expires_at)

    def certificate_reload_failed(self) -> None:
        self._certificate_failures.inc()

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        self._pool.forget(endpoint)
        for family, labels in self._by_endpoint.pop(endpoint, ()):
            family.remove(*labels)
        for key in [key for key in self._stream_states if key[0] == endpoint]:
            del self._stream_states[key]
        self._chosen.pop(endpoint, None)

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

    def parity_settled(self, endpoint: EndpointId, model: str, verdict: str) -> None:
        self._of_endpoint(endpoint, self._parity, (self._models.admit(model), endpoint, verdict)).inc()

    def prompt_tokens_compared(self, endpoint: EndpointId, model: str, more: int) -> None:
        result = "different" if more else "equal"
        self._of_endpoint(endpoint, self._prompt_tokens, (self._models.admit(model), endpoint, result)).inc()

    def hits_counted(self, endpoint: EndpointId, expected: int, found: int) -> None:
        self._of_endpoint(endpoint, self._counted_hits, (endpoint, "expected")).inc(expected)
        self._of_endpoint(endpoint, self._counted_hits, (endpoint, "counted")).inc(found)

    def parity_lost(self, loss: ParityLoss) -> None:
        before = self._alarms.get(loss.model)
        labels = self._alarms[loss.model] = self._models.admit(loss.model), loss.cause
        self._parity_lost.labels(*labels).set(1)
        self._end_alarm(before)

    def parity_restored(self, model: str) -> None:
        self._end_alarm(self._alarms.pop(model, None))

    def parity_forgotten(self, model: str) -> None:
        self._end_alarm(self._alarms.pop(model, None))

    def _end_alarm(self, labels: tuple[str, str] | None) -> None:
        if labels is not None and labels not in self._alarms.values():
            self._parity_lost.labels(*labels).set(0)

    def prefill_ended(self, endpoint: EndpointId, model: str, seconds: float) -> None:
        self._prefill.labels(self._models.admit(model)).observe(seconds)

    def index_size(self, endpoint: EndpointId, blocks: int) -> None:
        self._of_endpoint(endpoint, self._blocks, (endpoint,)).set(blocks)

    # --- series that end with an endpoint --------------------------------------------------------------------------------

    def _of_endpoint(self, endpoint: EndpointId, family: Family[_S], labels: tuple[str, ...]) -> _S:
        """The series with these labels, remembered so that it goes when the endpoint goes."""
        series = family.labels(*labels)
        self._by_endpoint.setdefault(endpoint, set()).add((cast("_AnyFamily", family), labels))
        return series


class _StreamMetrics:
    """The ext_proc streams themselves (spec/protocol.md 6.6); no data plane needs to be asked."""

    def __init__(self, families: Families) -> None:
        self._inflight = families.gauge("llm_d_epp_extproc_streams_inflight", "ext_proc streams that are open.").labels()
        self._duration = families.histogram(
            "llm_d_epp_extproc_stream_duration_seconds", "How long they were.", buckets=STREAM_BUCKETS
        ).labels()
        self._total = families.counter("llm_d_epp_extproc_streams_total", "ext_proc streams that ended.", ["code"])

    def opened(self) -> None:
        self._inflight.inc()

    def closed(self, grpc_code: str, seconds: float) -> None:
        self._inflight.dec()
        self._duration.observe(seconds)
        self._total.labels(_go_name(grpc_code)).inc()


def _go_name(grpc_code: str) -> str:
    """A gRPC status as Go spells it, and alerts on llm-d's metrics with it: INVALID_ARGUMENT is InvalidArgument."""
    special = {"OK": "OK", "CANCELLED": "Canceled"}
    return special.get(grpc_code) or "".join(word.capitalize() for word in grpc_code.split("_"))
