"""The EndpointPickerConfig of each mode that has a picker. Pure: returns YAML, which is JSON here, so that no path needs quoting.

Precise weighs as llm-d's sample for precise routing does, prefix 2, KV-cache use 1, queue 1 (spec/plugins.md, appendix A1),
and adds at half weight what its performance configuration has (3.3): requests under way, which are known at once where scraped
queues are 50 ms old, and, for prompts nobody holds, the pod that was given one longest ago.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from epp.demo.records import Mode

PRODUCER = "precise-prefix-cache-producer"

WEIGHTS: Mapping[Mode, Mapping[str, float]] = {
    Mode.PRECISE: {
        "prefix-cache-scorer": 2.0,
        "queue-scorer": 1.0,
        "kv-cache-utilization-scorer": 1.0,
        "active-request-scorer": 0.5,
        "no-hit-lru-scorer": 0.5,
    },
    Mode.LOAD: {"queue-scorer": 1.0, "kv-cache-utilization-scorer": 1.0},
}


def render(mode: Mode, *, endpoints: Path, model: str, model_folder: Path, block_size: int) -> str:
    """The configuration text of a mode with a picker."""
    plugins: list[dict[str, object]] = [
        {"type": "file-discovery", "parameters": {"path": str(endpoints)}},
        {"type": "metrics-data-source"},
        {"type": "core-metrics-extractor"},
        {"type": "single-profile-handler"},
        {"type": "max-score-picker"},
    ]
    sources: list[dict[str, object]] = [{"pluginRef": "metrics-data-source", "extractors": [{"pluginRef": "core-metrics-extractor"}]}]
    if mode is Mode.PRECISE:
        plugins += _precise(model, model_folder, block_size)
        sources.append({"pluginRef": "endpoint-notification-source", "extractors": [{"pluginRef": PRODUCER}]})
    for scorer in WEIGHTS[mode]:
        reads_prefixes = scorer in ("prefix-cache-scorer", "no-hit-lru-scorer")
        plugins.append({"type": scorer, "parameters": {"prefixMatchInfoProducerName": PRODUCER}} if reads_prefixes else {"type": scorer})
    profile = [{"pluginRef": scorer, "weight": weight} for scorer, weight in WEIGHTS[mode].items()]
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": plugins,
            "dataLayer": {"discovery": {"pluginRef": "file-discovery"}, "sources": sources},
            "schedulingProfiles": [{"name": "default", "plugins": [*profile, {"pluginRef": "max-score-picker"}]}],
        },
        indent=2,
    )


def _precise(model: str, model_folder: Path, block_size: int) -> list[dict[str, object]]:
    return [
        {"type": "token-producer", "parameters": {"modelName": model, "local": {"path": str(model_folder)}}},
        {"type": "endpoint-notification-source"},
        {"type": "inflight-load-producer"},
        {
            "type": PRODUCER,
            "parameters": {
                "tokenProcessorConfig": {"blockSizeTokens": block_size},
                "speculativeIndexing": True,
                "kvEventsConfig": {"topicFilter": "kv@", "discoverPods": True},
            },
        },
    ]
