"""The metrics page beside the one of a real vLLM 0.32."""

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from epp.simulator.engine import Engine, EngineConfig, Lora, Request
from epp.simulator.hashing import BlockHasher
from epp.simulator.metrics import PodMetrics
from tests.unit.simulator.recording import DATA


def families(page: str) -> dict[str, Metric]:
    """The families of vLLM's own by name."""
    return {family.name: family for family in text_string_to_metric_families(page) if family.name.startswith("vllm:")}


def test_names_types_and_labels_are_vllms() -> None:
    """Every sample has the name, type, labels and buckets of the recorded page."""
    engine = Engine(EngineConfig(block_size=32, num_blocks=64), BlockHasher())
    engine.add(Request("r", [1, 2, 3], [4], Lora(1, "adapter-a", "/a")))
    metrics = PodMetrics("tiny", max_loras=1)
    metrics.observe_ttft(0.3)
    metrics.observe_loras(engine, 1.0)
    real = families((DATA / "requests" / "metrics.txt").read_text())
    ours = families(metrics.render(engine))
    assert len(ours) == 12
    for name, family in ours.items():
        assert family.type == real[name].type
        shapes = {(sample.name, *sorted(sample.labels), sample.labels.get("le")) for sample in family.samples}
        assert shapes <= {(sample.name, *sorted(sample.labels), sample.labels.get("le")) for sample in real[name].samples}


def test_adapters_keep_their_past_combinations() -> None:
    """As in vLLM, an old combination of adapters stays on the page with its old time."""
    engine = Engine(EngineConfig(), BlockHasher())
    metrics = PodMetrics("tiny", max_loras=2)
    metrics.observe_loras(engine, 1.0)
    engine.add(Request("r", [1, 2, 3], [4], Lora(1, "b", "/b")))
    metrics.observe_loras(engine, 2.0)
    samples = families(metrics.render(engine))["vllm:lora_requests_info"].samples
    assert [(sample.labels["waiting_lora_adapters"], sample.value) for sample in samples] == [("", 1.0), ("b", 2.0)]


def test_model_names_are_escaped() -> None:
    """A name with a quote does not break the page."""
    engine = Engine(EngineConfig(), BlockHasher())
    page = PodMetrics('a"b\\c').render(engine)
    (sample,) = families(page)["vllm:num_requests_running"].samples
    assert sample.labels["model_name"] == 'a"b\\c'
