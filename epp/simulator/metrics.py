"""The page of GET /metrics: vLLM 0.32's names and labels, for what a simulated engine has data on (spec/kv.md 5).

Pure. Written by hand rather than with a metrics library: pickers scrape many times a second, and a page costs a tenth
of a millisecond this way. One `PodMetrics` per pod, updated by the pod, rendered by the API.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from epp.simulator.engine import Engine, EngineConfig, Request

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)  # fmt: skip

# At level 0 the engine is in neither of them.
SLEEP_STATES = (("awake", None), ("weights_offloaded", 1), ("discard_all", 2))

FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")


@dataclass(slots=True)
class PodMetrics:
    """What the engine itself does not count."""

    model: str
    max_loras: int = 0
    """0: no adapters, and no vllm:lora_requests_info."""
    started_at: float = 0.0
    """Unix seconds."""
    sleep_level: int | None = None
    """As /sleep takes it; None: awake."""
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISHED_REASONS, 0))
    _ttft_counts: list[int] = field(default_factory=lambda: [0] * (len(TTFT_BUCKETS) + 1))
    _ttft_sum: float = 0.0
    # (running, waiting) adapter lists -> Unix seconds when they last held. vLLM never drops a combination, so neither do we:
    # a reader has to take the youngest.
    _loras: dict[tuple[str, str], float] = field(default_factory=dict)

    def observe_ttft(self, seconds: float) -> None:
        """The first token of an answer came this long after its request."""
        self._ttft_counts[bisect_left(TTFT_BUCKETS, seconds)] += 1
        self._ttft_sum += seconds

    def observe_loras(self, engine: Engine, unix_time: float) -> None:
        """Note which adapters run and wait; called once a step."""
        if self.max_loras:
            self._loras[(_lora_names(engine.running), _lora_names(engine.waiting))] = unix_time

    def render(self, engine: Engine) -> str:
        """The whole page."""
        labels = f'engine="0",model_name="{_escape(self.model)}"'
        page = [
            "# HELP process_start_time_seconds Start of the process, Unix seconds.\n# TYPE process_start_time_seconds gauge\n",
            f"process_start_time_seconds {self.started_at!r}\n",
            _sample("num_requests_running", "gauge", labels, len(engine.running)),
            _sample("num_requests_waiting", "gauge", labels, len(engine.waiting)),
            _sample("kv_cache_usage_perc", "gauge", labels, engine.pool.usage),
            _sample("prefix_cache_queries_total", "counter", labels, engine.stats.prefix_queries),
            _sample("prefix_cache_hits_total", "counter", labels, engine.stats.prefix_hits),
            _sample("prompt_tokens_total", "counter", labels, engine.stats.prompt_tokens),
            _sample("generation_tokens_total", "counter", labels, engine.stats.generated_tokens),
            _family("request_success_total", "counter"),
            *(_line("request_success_total", f'{labels},finished_reason="{reason}"', count) for reason, count in self.finished.items()),
            _family("engine_sleep_state", "gauge"),
            *(_line("engine_sleep_state", f'{labels},sleep_state="{state}"', self.sleep_level == level) for state, level in SLEEP_STATES),
            *self._ttft(labels),
            _sample("cache_config_info", "gauge", _cache_config_labels(engine.config), 1.0),
        ]
        if self.max_loras:
            page.append(_family("lora_requests_info", "gauge"))
            for (running, waiting), unix_time in self._loras.items():
                adapters = f'running_lora_adapters="{_escape(running)}",waiting_lora_adapters="{_escape(waiting)}"'
                page.append(_line("lora_requests_info", f'max_lora="{self.max_loras}",{adapters}', unix_time))
        return "".join(page)

    def _ttft(self, labels: str) -> list[str]:
        name = "time_to_first_token_seconds"
        counts = list(accumulate(self._ttft_counts))
        bounds = [*map(str, TTFT_BUCKETS), "+Inf"]
        return [
            _family(name, "histogram"),
            *(_line(f"{name}_bucket", f'{labels},le="{bound}"', count) for bound, count in zip(bounds, counts, strict=True)),
            _line(f"{name}_count", labels, counts[-1]),
            _line(f"{name}_sum", labels, self._ttft_sum),
        ]


_HELP = {
    "num_requests_running": "Requests in the running batch.",
    "num_requests_waiting": "Requests in the waiting queue.",
    "kv_cache_usage_perc": "Share of KV blocks in use, 1 is all.",
    "prefix_cache_queries_total": "Tokens looked up in the prefix cache.",
    "prefix_cache_hits_total": "Tokens found in the prefix cache.",
    "prompt_tokens_total": "Prompt tokens of requests whose prefill is done.",
    "generation_tokens_total": "Tokens generated.",
    "engine_sleep_state": "Whether the engine is awake, or at which level it sleeps.",
    "request_success_total": "Requests finished, by reason.",
    "time_to_first_token_seconds": "Seconds from arrival to the first token.",
    "cache_config_info": "Configuration of the KV cache.",
    "lora_requests_info": "Adapters in use; the value is the time of the observation.",
}


def _family(name: str, kind: str) -> str:
    return f"# HELP vllm:{name} {_HELP[name]}\n# TYPE vllm:{name} {kind}\n"


def _line(name: str, labels: str, value: float) -> str:
    return f"vllm:{name}{{{labels}}} {float(value)!r}\n"


def _sample(name: str, kind: str, labels: str, value: float) -> str:
    return _family(name, kind) + _line(name, labels, value)


def _lora_names(requests: Iterable[Request]) -> str:
    return ",".join(sorted({request.lora.name for request in requests if request.lora}))


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _cache_config_labels(config: EngineConfig) -> str:
    """Every label vLLM 0.32 has; values are strings, "None" where the simulator has no such thing."""
    values = dict.fromkeys(_OTHER_CACHE_CONFIG_LABELS, "None") | {
        "_block_size_resolved": "True",
        "block_size": str(config.block_size),
        "effective_attention_block_size": str(config.block_size),
        "enable_prefix_caching": "True",
        "engine": "0",
        "is_attention_free": "False",
        "kv_cache_size_tokens": str(config.num_blocks * config.block_size),
        "num_gpu_blocks": str(config.num_blocks),
        "num_gpu_blocks_override": str(config.num_blocks),
        "prefix_cache_retention_interval": "0",
        "prefix_caching_hash_algo": "sha256",
        "user_specified_block_size": "True",
    }
    return ",".join(f'{name}="{value}"' for name, value in sorted(values.items()))


_OTHER_CACHE_CONFIG_LABELS = (
    "cache_dtype cache_hit_alignment_tokens enable_mamba_shared_prefix_checkpoint gpu_memory_utilization hash_block_size "
    "kv_cache_dtype_skip_layers kv_cache_layout kv_cache_max_concurrency kv_cache_memory_bytes kv_offloading_backend "
    "kv_offloading_size kv_sharing_fast_prefill mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_page_size_padded "
    "mamba_ssm_cache_dtype num_cpu_blocks prefix_match_unit replayssm_buffer_len skip_page_size_padded sliding_window "
    "swa_bounded_replay use_kda_recoverssm use_replayssm"
).split()
