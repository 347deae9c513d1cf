"""llm-d's request families under both their names (spec/protocol.md 6.1): counted per model and flow, from decision to end.

`RequestMetrics` belongs to the Prometheus reporter and is called by it on the event loop. What only answers tell (tokens,
times between them) is there where answers go through ext_proc; durations and sizes come from the access log as well.
The children that every request updates are resolved once per model and flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from epp import names
from epp.domain import EndCause, InferenceRequest, RequestEnd, Usage
from epp.errors import RequestError
from epp.observability.families import OTHER, Families, LabelLimit, Twin
from epp.observability.instruments import Counter, Gauge, Histogram

# Bucket sets B1 to B5 of spec/protocol.md 6; 32778 is llm-d's own spelling of 32768, and dashboards select by it.
TTFT_BUCKETS: Sequence[float] = (
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120,
)  # fmt: skip
DURATION_BUCKETS: Sequence[float] = (*TTFT_BUCKETS, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600)
REQUEST_SIZE_BUCKETS: Sequence[float] = tuple(float(64 << k) for k in range(25))
OUTPUT_TOKEN_BUCKETS: Sequence[float] = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
RESPONSE_SIZE_BUCKETS: Sequence[float] = (*OUTPUT_TOKEN_BUCKETS, 16384, 32778, 65536)
INPUT_TOKEN_BUCKETS: Sequence[float] = (*RESPONSE_SIZE_BUCKETS, 131072, 262144, 524288, 1048576)
# Those of single families, as they stand in the table.
NTPOT_BUCKETS: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TPOT_BUCKETS: Sequence[float] = (
    0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 2,
)  # fmt: skip
ITL_BUCKETS: Sequence[float] = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2)
REQUEST_PROCESSING_BUCKETS: Sequence[float] = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
RESPONSE_PROCESSING_BUCKETS: Sequence[float] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
)  # fmt: skip

MODEL_LABELS: Final = ("model_name", "target_model_name")
REQUEST_LABELS: Final = (*MODEL_LABELS, "fairness_id", "priority")
# Until objectives exist: what llm-d gives a request that names none.
NO_PRIORITY: Final = "0"

# Clients choose models, rewritten models and flows; a page has 10 to 30 KB for each combination that has series of its own. Flows beyond
# the first number are counted as one for each model, models beyond the second as one.
MAX_FLOW_SERIES: Final = 500
MAX_SERIES: Final = 1000

# error_code of an answer that the model server, not the picker, made an error.
MODEL_SERVER_ERROR: Final = "ModelServerError"

# error_code of a stream that ended with a gRPC status: the client gets what the data plane makes of it, mostly 500.
UNKNOWN_ERROR: Final = "Unknown"


@dataclass(slots=True)
class Series:
    """The labels of one model and flow, and those children that every request updates."""

    model: str
    target: str
    labels: Sequence[str]
    """Values of REQUEST_LABELS."""
    total: Counter
    running: Gauge | None
    """None: what names no model is not counted as running, as with llm-d."""
    request_size: Histogram
    response_size: Histogram
    duration: Histogram


class RequestMetrics:
    """The families and their children."""

    def __init__(self, families: Families, models: LabelLimit) -> None:
        """`models` limits the names that become labels."""
        self._models = models
        self._flows = LabelLimit()
        self._series: dict[tuple[str, str, str], Series] = {}
        self._make_families(families)
        self._make_token_families(families)

    def _make_families(self, families: Families) -> None:
        self._total = families.counter(
            "llm_d_epp_request_total", "Requests an endpoint was chosen for.", REQUEST_LABELS, twin=_old("request", "priority")
        )
        self._errors = families.counter(
            "llm_d_epp_request_error_total", "Requests that ended in an error, of this picker or of a model server.",
            (*REQUEST_LABELS, "error_code"), twin=_old("request_error", "error_code"),
        )  # fmt: skip
        self._duration = families.histogram(
            "llm_d_epp_request_duration_seconds", "From the request's arrival to the end of its answer.", REQUEST_LABELS,
            buckets=DURATION_BUCKETS, twin=_old("request_duration_seconds"),
        )  # fmt: skip
        self._request_size = families.histogram(
            "llm_d_epp_request_size_bytes", "Size of request bodies.", REQUEST_LABELS,
            buckets=REQUEST_SIZE_BUCKETS, twin=_old("request_sizes"),
        )  # fmt: skip
        self._response_size = families.histogram(
            "llm_d_epp_response_size_bytes", "Size of answers.", REQUEST_LABELS,
            buckets=RESPONSE_SIZE_BUCKETS, twin=_old("response_sizes"),
        )  # fmt: skip
        self._running = families.gauge(
            "llm_d_epp_request_running", "Requests whose answer has not ended.", REQUEST_LABELS,
            twin=Twin("inference_objective_running_requests", ["model_name"]),
        )  # fmt: skip
        self._request_processing = families.histogram(
            "llm_d_epp_request_processing_duration_seconds", "From a request's headers to our last reply about it.",
            buckets=REQUEST_PROCESSING_BUCKETS,
        ).labels()  # fmt: skip
        self._response_processing = families.histogram(
            "llm_d_epp_response_processing_duration_seconds", "Time spent on the messages of an answer.",
            buckets=RESPONSE_PROCESSING_BUCKETS,
        ).labels()  # fmt: skip

    def _make_token_families(self, families: Families) -> None:
        self._input_tokens = families.histogram(
            "llm_d_epp_request_input_tokens", "Tokens of prompts, as engines state them.", REQUEST_LABELS,
            buckets=INPUT_TOKEN_BUCKETS, twin=_old("input_tokens"),
        )  # fmt: skip
        self._output_tokens = families.histogram(
            "llm_d_epp_request_output_tokens", "Tokens of answers, as engines state them.", REQUEST_LABELS,
            buckets=OUTPUT_TOKEN_BUCKETS, twin=_old("output_tokens"),
        )  # fmt: skip
        self._cached_tokens = families.histogram(
            "llm_d_epp_request_cached_tokens", "Tokens of prompts that engines found in their cache.", REQUEST_LABELS,
            buckets=INPUT_TOKEN_BUCKETS, twin=_old("prompt_cached_tokens"),
        )  # fmt: skip
        self._ntpot = families.histogram(
            "llm_d_epp_request_ntpot_seconds", "Duration divided by the tokens of the answer.", REQUEST_LABELS,
            buckets=NTPOT_BUCKETS, twin=_old("normalized_time_per_output_token_seconds"),
        )  # fmt: skip
        self._ttft = families.histogram(
            "llm_d_epp_request_ttft_seconds", "To the first chunk of an answer.", (*REQUEST_LABELS, "streaming"), buckets=TTFT_BUCKETS
        )
        self._tpot = families.histogram(
            "llm_d_epp_request_streaming_tpot_seconds", "Time per token after the first, of streamed answers.", REQUEST_LABELS,
            buckets=TPOT_BUCKETS,
        )  # fmt: skip
        self._itl = families.histogram(
            "llm_d_epp_request_streaming_itl_seconds", "Between the chunks of streamed answers.", REQUEST_LABELS, buckets=ITL_BUCKETS
        )

    # --- what happens -------------------------------------------------------------------------------------------

    def decided(self, request: InferenceRequest) -> Series:
        """An endpoint was chosen. Returns the series, for their labels."""
        series = self.of(request)
        series.total.inc()
        if request.size_bytes:
            series.request_size.observe(request.size_bytes)
        if series.running is not None:
            series.running.inc()
        return series

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        """It ended with an answer of ours."""
        self._errors.labels(*self.of(request).labels, error.code).inc()

    def stream_failed(self) -> None:
        """Its stream ended with an error: a bug of ours, or a data plane that broke the protocol."""
        self._errors.labels(*self.of(None).labels, UNKNOWN_ERROR).inc()

    def chunks_came(self, request: InferenceRequest, gaps_s: Sequence[float]) -> None:
        """Chunks of a streamed answer."""
        observe = self._itl.labels(*self.of(request).labels).observe
        for gap in gaps_s:
            observe(gap)

    def ended(self, request: InferenceRequest, end: RequestEnd) -> None:
        """Once after each `decided`. Times and sizes are those of whole answers only, as in llm-d."""
        series = self.of(request)
        if series.running is not None:
            series.running.dec()
        if not request.size_bytes and end.bytes_received:  # routed before its body was seen
            series.request_size.observe(end.bytes_received)
        if end.cause is EndCause.UPSTREAM_FAILED or (end.status is not None and end.status >= 400):
            self._errors.labels(*series.labels, MODEL_SERVER_ERROR).inc()
        if end.cause is not EndCause.FINISHED:
            return
        if end.duration_s is not None:
            series.duration.observe(end.duration_s)
        if end.bytes_sent is not None:
            series.response_size.observe(end.bytes_sent)
        if end.first_chunk_s is not None:
            self._ttft.labels(*series.labels, "true" if end.streamed else "false").observe(end.first_chunk_s)
        if end.usage is not None:
            self._count_tokens(series, end, end.usage)

    def request_processed(self, seconds: float) -> None:
        """The request phase of a stream is over."""
        self._request_processing.observe(seconds)

    def response_processed(self, seconds: float) -> None:
        """The response phase of a stream is over."""
        self._response_processing.observe(seconds)

    def _count_tokens(self, series: Series, end: RequestEnd, usage: Usage) -> None:
        if usage.prompt_tokens:
            self._input_tokens.labels(*series.labels).observe(usage.prompt_tokens)
        if usage.cached_tokens is not None:
            self._cached_tokens.labels(*series.labels).observe(usage.cached_tokens)
        if not usage.completion_tokens:
            return
        self._output_tokens.labels(*series.labels).observe(usage.completion_tokens)
        if end.duration_s is not None:
            self._ntpot.labels(*series.labels).observe(end.duration_s / usage.completion_tokens)
        if end.streamed and usage.completion_tokens > 1 and end.first_chunk_s is not None and end.last_chunk_s is not None:
            self._tpot.labels(*series.labels).observe((end.last_chunk_s - end.first_chunk_s) / (usage.completion_tokens - 1))

    def of(self, request: InferenceRequest | None) -> Series:
        """The series of a request's model and flow; of no model where the request could not be read."""
        model, target, flow = ("", "", names.DEFAULT_FLOW) if request is None else (request.model, request.served_model, request.flow)
        series = self._series.get((model, target, flow))
        if series is not None:
            return series
        model, target = self._models.admit(model), self._models.admit(target)
        if flow != names.DEFAULT_FLOW and (model, target, flow) not in self._series:
            flow = self._flows.admit(flow) if len(self._series) < MAX_FLOW_SERIES else OTHER
        if len(self._series) >= MAX_SERIES and (model, target, flow) not in self._series:
            model, target = model and OTHER, target and OTHER
        series = self._series.get((model, target, flow))
        if series is None:
            labels = (model, target, flow, NO_PRIORITY)
            series = self._series[model, target, flow] = Series(
                model,
                target,
                labels,
                total=self._total.labels(*labels),
                running=self._running.labels(*labels) if model else None,
                request_size=self._request_size.labels(*labels),
                response_size=self._response_size.labels(*labels),
                duration=self._duration.labels(*labels),
            )
        return series


def _old(name: str, *more: str) -> Twin:
    return Twin(f"inference_objective_{name}", (*MODEL_LABELS, *more))
