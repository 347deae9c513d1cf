"""What to read from an engine's /metrics page, and how: names per engine as data, extraction without a full parser.

Pure. A page of vLLM is 67 KB and comes 20 times a second from every endpoint, while five families matter: each is found
by its TYPE line (`bytes.find`), and only its own lines are decoded. Tested against prometheus_client's parser.

Rules (spec/plugins.md 12.2, spec/protocol.md 1.6), and where they leave a choice, ours:
- Only families of type gauge or counter count; any other (or no TYPE line) is as good as missing. llm-d reads 0 there.
- Of several samples that match a spec: the latest timestamp, then the first. One API server can publish several ranks
  (label `engine`): where a sample names the endpoint's own rank, only such samples count.
- LoRA: the sample with the highest value, which is a time. No such family is no error: the engine serves no adapters.
- A missing family leaves its field as it was; the others are applied. NaN and infinity count as missing.
- A line of a wanted family that cannot be read spoils the page: it is not what we think it is, and nothing is applied.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from epp.domain import NO_LABELS, EndpointMetrics
from epp.errors import ConfigError


class PageError(ValueError):
    """The page is not Prometheus text, or a wanted line is malformed."""


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One engine's names; each value is a spec, `name` or `name{label=value,...}`; None: the engine does not tell.

    Block size and count are labels of `cache_info`, or families of their own where `block_size` and `num_blocks` are given.
    """

    queued: str
    running: str
    kv_usage: str | None = None
    lora: str | None = None
    cache_info: str | None = None
    block_size_label: str = "block_size"
    num_blocks_label: str = "num_gpu_blocks"
    block_size: str | None = None
    num_blocks: str | None = None
    awake: str | None = None
    """0 while the engine sleeps. Older engines lack it, and the two that follow: that is no error."""
    prefix_queries: str | None = None
    prefix_hits: str | None = None


VLLM = EngineMetrics(
    queued="vllm:num_requests_waiting",
    running="vllm:num_requests_running",
    kv_usage="vllm:kv_cache_usage_perc",
    lora="vllm:lora_requests_info",
    cache_info="vllm:cache_config_info",
    awake="vllm:engine_sleep_state{sleep_state=awake}",
    prefix_queries="vllm:prefix_cache_queries_total",
    prefix_hits="vllm:prefix_cache_hits_total",
)

ENGINES: Mapping[str, EngineMetrics] = {
    "vllm": VLLM,
    "sglang": EngineMetrics(
        queued="sglang:num_queue_reqs",
        running="sglang:num_running_reqs",
        kv_usage="sglang:token_usage",
        cache_info="sglang:cache_config_info",
        block_size_label="page_size",
        num_blocks_label="num_pages",
    ),
    "trtllm-serve": EngineMetrics(
        queued="trtllm_num_requests_waiting",
        running="trtllm_num_requests_running",
        kv_usage="trtllm_kv_cache_utilization",
        block_size="trtllm_kv_cache_tokens_per_block",
        num_blocks="trtllm_kv_cache_max_blocks",
    ),
    "triton-tensorrt-llm": EngineMetrics(
        queued="nv_trt_llm_request_metrics{request_type=waiting}",
        running="nv_trt_llm_request_metrics{request_type=scheduled}",
        kv_usage="nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
        block_size="nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}",
        num_blocks="nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}",
    ),
    "triton": EngineMetrics(queued="nv_inference_pending_request_count", running="nv_inference_exec_count"),
}

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*("(?:[^"\\]|\\.)*"|[^",{}]*)\s*(,|$)')
_LABEL = re.compile(r'[ \t]*([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,|(?=[}]))')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}
_AFTER_NAME = (b"{", b" ", b"\t", b"\n", b"\r", b"")
_SAMPLE_LINE = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*[ \t]*[ \t{]")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A family and the labels its sample must carry."""

    name: str
    labels: Mapping[str, str]
    type_line: bytes = field(repr=False, default=b"")
    encoded: bytes = field(repr=False, default=b"")


@dataclass(slots=True)
class Sample:
    """One line of a family."""

    labels: Mapping[str, str]
    value: float
    timestamp: int
    """Milliseconds; 0 where the line has none."""


def parse_spec(text: str) -> MetricSpec:
    """`name` or `name{label=value,label2="value2"}`. Raises ConfigError that quotes the text."""
    stripped = text.strip()
    name = _NAME.match(stripped)
    rest = stripped[name.end() :].strip() if name else ""
    if name is None or (rest and not (rest.startswith("{") and rest.endswith("}"))):
        raise ConfigError(f"metric spec {text!r}: expected `name` or `name{{label=value}}`")
    labels: dict[str, str] = {}
    inner, position = rest[1:-1].strip(), 0
    while position < len(inner):
        match = _MATCHER.match(inner, position)
        if match is None:
            raise ConfigError(f"metric spec {text!r}: expected label=value at {inner[position:]!r}")
        value = match[2].strip()
        labels[match[1]] = _unescape(value[1:-1]) if value.startswith('"') else value
        position = match.end()
    encoded = name[0].encode()
    return MetricSpec(name[0], labels, b"# TYPE " + encoded + b" ", encoded)


class PageReader:
    """Reads the pages of one engine type. Stateless beyond its specs; shared by all endpoints of that type."""

    def __init__(self, engine: EngineMetrics) -> None:
        """Raises ConfigError for a spec that is none."""
        self._engine = engine
        self._queued = parse_spec(engine.queued)
        self._running = parse_spec(engine.running)
        self._kv_usage = _maybe_spec(engine.kv_usage)
        self._lora = _maybe_spec(engine.lora)
        self._cache_info = _maybe_spec(engine.cache_info)
        self._block_size = _maybe_spec(engine.block_size)
        self._num_blocks = _maybe_spec(engine.num_blocks)
        self._awake = _maybe_spec(engine.awake)
        self._prefix_queries = _maybe_spec(engine.prefix_queries)
        self._prefix_hits = _maybe_spec(engine.prefix_hits)

    def read(self, page: bytes, *, rank: int, before: EndpointMetrics, now: float) -> tuple[EndpointMetrics, list[str]]:
        """The metrics of one page, and the names of what it lacks.

        Fields the page lacks stay as in `before`; so does `updated_at` where it has none at all. Raises PageError.
        """
        missing: list[str] = []
        waiting = _number(page, self._queued, rank, missing)
        running = _number(page, self._running, rank, missing)
        usage = _number(page, self._kv_usage, rank, missing) if self._kv_usage else None
        block_size, num_blocks = self._cache(page, rank, missing)
        lora = _latest_lora(page, self._lora) if self._lora else None
        found = any(value is not None for value in (waiting, running, usage, block_size, num_blocks, lora))
        if not found:
            _check_is_exposition(page)
        metrics = EndpointMetrics(
            waiting=before.waiting if waiting is None else int(waiting),
            running=before.running if running is None else int(running),
            kv_cache_usage=before.kv_cache_usage if usage is None else usage,
            block_size=block_size or before.block_size,
            num_blocks=num_blocks or before.num_blocks,
            active_loras=before.active_loras if lora is None else _names(lora, "running_lora_adapters"),
            waiting_loras=before.waiting_loras if lora is None else _names(lora, "waiting_lora_adapters"),
            max_loras=before.max_loras if lora is None else _whole(lora.labels.get("max_lora")) or 0,
            asleep=_optional(page, self._awake, rank, 1.0) == 0.0,
            prefix_queries=_optional(page, self._prefix_queries, rank, None),
            prefix_hits=_optional(page, self._prefix_hits, rank, None),
            updated_at=now if found else before.updated_at,
        )
        return metrics, missing

    def _cache(self, page: bytes, rank: int, missing: list[str]) -> tuple[int | None, int | None]:
        if self._cache_info is not None:
            sample = _pick(page, self._cache_info, rank)
            if sample is None:
                missing.append(self._cache_info.name)
                return None, None
            # vLLM writes "None" for what it does not know yet: no error, the labels are optional.
            return _whole(sample.labels.get(self._engine.block_size_label)), _whole(sample.labels.get(self._engine.num_blocks_label))
        sizes = [_number(page, spec, rank, missing) if spec else None for spec in (self._block_size, self._num_blocks)]
        block_size, num_blocks = (None if size is None else int(size) for size in sizes)
        return block_size, num_blocks


def _maybe_spec(text: str | None) -> MetricSpec | None:
    return parse_spec(text) if text else None


def _number(page: bytes, spec: MetricSpec, rank: int, missing: list[str]) -> float | None:
    sample = _pick(page, spec, rank)
    if sample is not None and math.isfinite(sample.value):
        return sample.value
    missing.append(spec.name)
    return None


def _optional(page: bytes, spec: MetricSpec | None, rank: int, default: float | None) -> float | None:
    """The value of a family that not every engine has."""
    sample = _pick(page, spec, rank) if spec is not None else None
    return default if sample is None else sample.value


def _pick(page: bytes, spec: MetricSpec, rank: int) -> Sample | None:
    """The sample a spec stands for, or None. O(page) at memory speed plus O(lines of the family)."""
    found = samples(page, spec)
    if spec.labels:
        found = [sample for sample in found if all(sample.labels.get(key, "") == value for key, value in spec.labels.items())]
    if len(found) <= 1:
        return found[0] if found else None
    own = str(rank)
    return max(found, key=lambda sample: (sample.labels.get("engine") == own, sample.timestamp))


def _latest_lora(page: bytes, spec: MetricSpec) -> Sample | None:
    readable = (sample for sample in samples(page, spec) if not math.isnan(sample.value))
    return max(readable, key=lambda sample: sample.value, default=None)


def samples(page: bytes, spec: MetricSpec) -> list[Sample]:
    """All samples of a gauge or counter family, decoded; none where the page lacks it. Raises PageError.

    Relies on what the text format demands: the lines of a family stand together, after its TYPE line.
    """
    found: list[Sample] = []
    start = _after_type_line(page, spec.type_line)
    name, length = spec.encoded, len(spec.encoded)
    while 0 <= start < len(page):
        end = page.find(b"\n", start)
        if end < 0:
            end = len(page)
        if page.startswith(name, start) and page[start + length : start + length + 1] in _AFTER_NAME:
            found.append(_sample(page[start + length : end]))
        elif not page.startswith(b"# HELP ", start) and page[start:end].strip():
            break
        start = end + 1
    return found


def _after_type_line(page: bytes, type_line: bytes) -> int:
    """Where the line after the family's TYPE line begins; -1 without one of type gauge or counter."""
    start = page.find(type_line)
    while start > 0 and page[start - 1] != 0x0A:
        start = page.find(type_line, start + 1)
    if start < 0:
        return -1
    end = page.find(b"\n", start)
    if end < 0 or page[start + len(type_line) : end].strip() not in (b"gauge", b"counter"):
        return -1
    return end + 1


def _sample(rest: bytes) -> Sample:
    """Labels, value and timestamp of a line after its name."""
    labels_end = rest.rfind(b"}") + 1
    try:
        labels = _labels(rest[:labels_end]) if labels_end else NO_LABELS
        value, *timestamp = rest[labels_end:].split()
        if len(timestamp) > 1 or b"_" in rest[labels_end:]:
            raise PageError(f"malformed value: {rest[labels_end:][:80]!r}")
        return Sample(labels, float(value), int(timestamp[0]) if timestamp else 0)
    except ValueError as error:
        raise PageError(str(error)) from None


@functools.lru_cache(maxsize=1024)
def _labels(text: bytes) -> Mapping[str, str]:
    """`{a="b",...}` decoded. Cached: from scrape to scrape, and from endpoint to endpoint, labels stay and values change."""
    decoded, position = text.decode(), 1
    labels: dict[str, str] = {}
    while (match := _LABEL.match(decoded, position)) is not None:
        labels[match[1]] = _unescape(match[2])
        position = match.end()
    if not decoded.startswith("{") or decoded[position:].strip() != "}":
        raise PageError(f"malformed labels: {decoded[:80]!r}")
    return MappingProxyType(labels)


def _check_is_exposition(page: bytes) -> None:
    """A page without any wanted family: another engine's, or not a metrics page at all?"""
    stripped = page.lstrip()
    if stripped and not stripped.startswith(b"#") and not _SAMPLE_LINE.match(stripped):
        raise PageError(f"not Prometheus text: {stripped[:40]!r}")


def _names(sample: Sample, label: str) -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, sample.labels.get(label, "").split(","))))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and len(text) <= 18 and text.isascii() and text.isdigit() else None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[0]), text) if "\\" in text else text
