"""What is read from a /metrics page, held against prometheus_client's parser."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from epp.domain import NEVER_SCRAPED, EndpointMetrics
from epp.errors import ConfigError
from epp.sources.engine_metrics import ENGINES, VLLM, EngineMetrics, PageError, PageReader, parse_spec, samples

RECORDED = Path(__file__).parents[2] / "data" / "vllm-0.32.0"
PAGES = {name: (RECORDED / name / "metrics.txt").read_bytes() for name in ("requests", "eviction")}

LOAD = "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 3\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 4\n"


def read(
    page: str | bytes, engine: EngineMetrics = VLLM, *, rank: int = 0, before: EndpointMetrics = NEVER_SCRAPED
) -> tuple[EndpointMetrics, list[str]]:
    raw = page.encode() if isinstance(page, str) else page
    return PageReader(engine).read(raw, rank=rank, before=before, now=5.0)


def oracle(page: str, name: str) -> list[tuple[dict[str, str], str, int]]:
    """(labels, value, timestamp in ms) of a gauge or counter, in the order of the page; values as text, so that NaN equals NaN."""
    return [
        (sample.labels, repr(float(sample.value)), round(float(sample.timestamp or 0) * 1000))
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and family.type in {"gauge", "counter"}
    ]


def extracted(page: str, name: str) -> list[tuple[dict[str, str], str, int]]:
    return [(dict(s.labels), repr(s.value), s.timestamp) for s in samples(page.encode(), parse_spec(name))]


@pytest.mark.parametrize("recording", PAGES)
def test_every_gauge_and_counter_of_a_real_page_is_found_as_the_full_parser_finds_it(recording: str) -> None:
    """Not only the families in use: the shortcuts hold for each of vLLM's."""
    page = PAGES[recording].decode()
    names = {s.name for family in text_string_to_metric_families(page) if family.type in {"gauge", "counter"} for s in family.samples}
    assert len(names) > 60
    for name in names:
        assert extracted(page, name) == oracle(page, name)


def test_a_real_page() -> None:
    """What vLLM 0.32 said after the recorded requests."""
    metrics, missing = read(PAGES["requests"])
    assert missing == []
    assert metrics == EndpointMetrics(
        block_size=32, num_blocks=32768, max_loras=1, prefix_queries=8031.0, prefix_hits=2976.0, updated_at=5.0
    )


def test_a_sleeping_engine_says_so() -> None:
    """Both levels of sleep; an engine that says nothing about it is awake."""
    awake = b'sleep_state="awake"} 1.0'
    assert awake in PAGES["requests"]
    metrics, _ = read(PAGES["requests"].replace(awake, awake.replace(b"1.0", b"0.0")))
    assert metrics.asleep
    metrics, missing = read(PAGES["requests"].replace(b"engine_sleep_state", b"engine_other"))
    assert (metrics.asleep, missing) == (False, [])


NAME = "vllm:num_requests_waiting"
_labels = st.dictionaries(
    st.sampled_from(["engine", "model_name", "_x", "reason"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3
)
_value = st.one_of(st.floats(), st.integers(-5, 10**20)).map(
    lambda value: {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(str(value), str(value))
)
_sample = st.tuples(_labels, _value, st.one_of(st.none(), st.integers(0, 2**41)))
COUNTER = "vllm:finished_total"  # Python's parser wants counters named so; Go's, and ours, do not
_head = st.one_of(
    st.tuples(
        st.sampled_from([NAME, f"{NAME}_by_reason", f"x{NAME}", "vllm:num", "vllm"]), st.sampled_from(["gauge", "untyped", "histogram"])
    ),
    st.just((COUNTER, "counter")),
)
_page = st.lists(st.tuples(_head, st.booleans(), st.lists(_sample, max_size=4)), unique_by=lambda family: family[0][0], max_size=5)


def rendered(families: list[tuple[tuple[str, str], bool, list[tuple[dict[str, str], str, int | None]]]]) -> str:
    lines: list[str] = []
    for (name, kind), helped, said in families:
        lines += [f"# HELP {name} about {NAME} gauge"] if helped else []
        lines.append(f"# TYPE {name} {kind}")
        for labels, value, timestamp in said:
            escaped = {key: text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for key, text in labels.items()}
            inner = "{" + ",".join(f'{key}="{text}"' for key, text in escaped.items()) + "}" if labels else ""
            lines.append(f"{name}{inner} {value}" + ("" if timestamp is None else f" {timestamp}"))
    return "\n".join(lines) + "\n"


@given(_page.map(rendered))
def test_any_page_is_read_as_the_full_parser_reads_it(page: str) -> None:
    """Label values with quotes, braces and line ends, look-alike names, every type, timestamps."""
    for name in (NAME, COUNTER):
        assert extracted(page, name) == oracle(page, name)


@given(st.one_of(st.binary(), st.text(f'{NAME}# TYPE gauge{{}}="0.\\\n').map(lambda tail: f"# TYPE {NAME} gauge\n{NAME}{tail}".encode())))
def test_garbage_is_refused_or_read_never_more(page: bytes) -> None:
    """A pod can send what it likes."""
    try:
        metrics, _ = read(page)
    except PageError:
        return
    assert metrics.updated_at in {None, 5.0}


IN_OWN_WORDS = {
    "sglang": [
        "sglang:num_queue_reqs 3",
        "sglang:num_running_reqs 4",
        "sglang:token_usage 0.5",
        'sglang:cache_config_info{page_size="16",num_pages="99"} 1',
    ],
    "trtllm-serve": [
        "trtllm_num_requests_waiting 3",
        "trtllm_num_requests_running 4",
        "trtllm_kv_cache_utilization 0.5",
        "trtllm_kv_cache_tokens_per_block 16",
        "trtllm_kv_cache_max_blocks 99",
    ],
    "triton-tensorrt-llm": [
        'nv_trt_llm_request_metrics{request_type="waiting"} 3',
        'nv_trt_llm_request_metrics{request_type="scheduled"} 4',
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"} 0.5',
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per"} 16',
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max"} 99',
    ],
}


@pytest.mark.parametrize("engine", IN_OWN_WORDS)
def test_each_engine_says_the_same_in_its_own_words(engine: str) -> None:
    """Queue 3, running 4, half full, 99 blocks of 16."""
    lines: list[str] = []
    for line in IN_OWN_WORDS[engine]:
        head = f"# TYPE {line.split('{')[0].split()[0]} gauge"
        lines += [line] if head in lines else [head, line]
    metrics, missing = read("\n".join(lines), ENGINES[engine])
    assert missing == []
    assert metrics == EndpointMetrics(3, 4, 0.5, 16, 99, updated_at=5.0)


def test_the_own_rank_counts_then_the_latest_timestamp_then_the_first() -> None:
    """An API server in front of several data-parallel engines publishes them all."""

    def waiting(*lines: str, rank: int = 0) -> int:
        return read("\n".join([f"# TYPE {NAME} gauge", *(f"{NAME}{line}" for line in lines)]), rank=rank)[0].waiting

    ranks = ('{engine="0"} 1', '{engine="1"} 2')
    assert [waiting(*ranks, rank=rank) for rank in (0, 1, 2)] == [1, 2, 1]
    assert waiting("{a='x'} 1".replace("'", '"') + " 100", '{a="y"} 2 200', '{a="z"} 3 200') == 2
    assert waiting('{a="x"} 1', '{a="y"} 2') == 1


def test_lora_adapters_are_those_of_the_newest_sample() -> None:
    """The value of vLLM's LoRA gauge is the time it was said."""
    page = LOAD + (
        "# TYPE vllm:lora_requests_info gauge\n"
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters=""} 2e9\n'
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters="c"} 1e9\n'
    )
    metrics, _ = read(page)
    assert (metrics.active_loras, metrics.waiting_loras, metrics.max_loras) == (frozenset("ab"), frozenset(), 4)


def test_what_a_page_lacks_stays_as_it_was_and_is_named() -> None:
    """The rest is applied; adapters are not missed, an engine without LoRA has none."""
    before = EndpointMetrics(waiting=9, kv_cache_usage=0.7, block_size=32, num_blocks=8, updated_at=1.0)
    metrics, missing = read(LOAD, before=before)
    assert missing == ["vllm:kv_cache_usage_perc", "vllm:cache_config_info"]
    assert metrics == EndpointMetrics(3, 4, 0.7, 32, 8, updated_at=5.0)


@pytest.mark.parametrize("kind", ["untyped", "histogram", "summary"])
def test_other_types_and_nan_are_missing(kind: str) -> None:
    """A number nobody vouches for is no load; NaN would make every comparison false."""
    page = f"# TYPE {NAME} {kind}\n{NAME} 3\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running NaN\n"
    metrics, missing = read(page)
    assert {NAME, "vllm:num_requests_running"} <= set(missing)
    assert metrics == NEVER_SCRAPED


def test_none_is_no_block_size() -> None:
    """vLLM publishes "None" for what is not resolved yet."""
    page = LOAD + '# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="None",num_gpu_blocks="64"} 1.0\n'
    metrics, _ = read(page)
    assert (metrics.block_size, metrics.num_blocks) == (None, 64)


@pytest.mark.parametrize(
    "page",
    [
        "<html><body>not found</body></html>",
        '{"error": "no such route"}',
        f"# TYPE {NAME} gauge\n{NAME} three\n",
        f"# TYPE {NAME} gauge\n{NAME}\n",
        f"# TYPE {NAME} gauge\n{NAME} \n",
        f"# TYPE {NAME} gauge\n{NAME} 1 2 3\n",
        f"# TYPE {NAME} gauge\n{NAME} 1_0\n",
        f'# TYPE {NAME} gauge\n{NAME}{{engine="0" 1\n',
        f"# TYPE {NAME} gauge\n{NAME}{{engine=0}} 1\n",
        f'# TYPE {NAME} gauge\n{NAME}{{engine="0"x}} 1\n',
        f"# TYPE {NAME} gauge\n".encode() + f'{NAME}{{engine="'.encode() + b'\xff"} 1\n',
    ],
)
def test_a_page_that_is_none_is_refused(page: str | bytes) -> None:
    """Nothing of it is applied."""
    with pytest.raises(PageError):
        read(page)


def test_a_page_of_another_engine_updates_nothing() -> None:
    """It is fine, only not ours: all is missing, and the metrics stay as old as they are."""
    metrics, missing = read(LOAD, ENGINES["triton"], before=EndpointMetrics(waiting=1, updated_at=1.0))
    assert missing == ["nv_inference_pending_request_count", "nv_inference_exec_count"]
    assert (metrics.waiting, metrics.updated_at) == (1, 1.0)


@pytest.mark.parametrize(
    ("text", "name", "labels"),
    [
        ("a:b_c", "a:b_c", {}),
        (" m{} ", "m", {}),
        ("m{a=b}", "m", {"a": "b"}),
        ('m { a = "x, y" , b=c }', "m", {"a": "x, y", "b": "c"}),
        (r'm{a="\"\\"}', "m", {"a": '"\\'}),
    ],
)
def test_a_spec(text: str, name: str, labels: dict[str, str]) -> None:
    """Name, then labels in braces, quoted or not."""
    spec = parse_spec(text)
    assert (spec.name, spec.labels) == (name, labels)


@pytest.mark.parametrize("text", ["", "{a=b}", "m{a=b", "m}", "m{a}", "m{a=b}c", "9m", 'm{a="b}', "m{=b}", "m n"])
def test_a_spec_that_is_none_is_quoted(text: str) -> None:
    """The operator sees which of the specs."""
    with pytest.raises(ConfigError, match="metric spec") as caught:
        parse_spec(text)
    assert repr(text) in str(caught.value)
