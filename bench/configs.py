"""The EndpointPickerConfig of each amount of work. Pure: returns YAML, which is JSON here, so that no path needs quoting.

DEFAULT has llm-d's default scorers at their default weights (spec: queue 2, KV-cache use 2) without the approximate prefix scorer;
PRECISE has the scorers of llm-d's precise configuration, with the token ids made in the picker. Where no engine publishes KV events
(everywhere but in the block `events`) the index is filled by speculation, as it is between two events of a busy engine.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.bodies import MODEL
from bench.records import Work

_PRODUCER = "precise-prefix-cache-producer"
_PREFIX = {"prefixMatchInfoProducerName": _PRODUCER}

Plugin = dict[str, object]


def render(work: Work, *, endpoints: Path, model_folder: Path, events: bool = False) -> str:
    """The configuration text; `events`: the endpoints publish KV events, which PRECISE listens to."""
    plugins: list[Plugin] = [{"type": "file-discovery", "parameters": {"path": str(endpoints)}}]
    profile: list[Plugin] = [{"pluginRef": "random-picker"}]
    if work is Work.BARE:
        plugins.append({"type": "random-picker"})
        return _document(plugins, profile, [])
    sources: list[Plugin] = [{"pluginRef": "metrics-data-source", "extractors": [{"pluginRef": "core-metrics-extractor"}]}]
    plugins += [{"type": name} for name in ("metrics-data-source", "core-metrics-extractor", "max-score-picker")]
    scorers: list[tuple[str, float]] = [("queue-scorer", 2.0), ("kv-cache-utilization-scorer", 2.0)]
    if work is Work.PRECISE:
        plugins += _precise(model_folder, events=events)
        scorers += [("prefix-cache-scorer", 3.0), ("active-request-scorer", 1.0), ("no-hit-lru-scorer", 1.0)]
    for scorer, _ in scorers:
        plugins.append(
            {"type": scorer, "parameters": _PREFIX} if scorer in ("prefix-cache-scorer", "no-hit-lru-scorer") else {"type": scorer}
        )
    profile = [*({"pluginRef": scorer, "weight": weight} for scorer, weight in scorers), {"pluginRef": "max-score-picker"}]
    return _document(plugins, profile, sources)


def _precise(model_folder: Path, *, events: bool) -> list[Plugin]:
    return [
        {"type": "token-producer", "parameters": {"modelName": MODEL, "local": {"path": str(model_folder)}}},
        {"type": "inflight-load-producer"},
        {"type": _PRODUCER, "parameters": {"speculativeIndexing": True, "kvEventsConfig": {"discoverPods": events}}},
    ]


def _document(plugins: Sequence[Plugin], profile: Sequence[Plugin], sources: Sequence[Plugin]) -> str:
    data_layer = {"discovery": {"pluginRef": "file-discovery"}, "injectDefaults": bool(sources), "sources": list(sources)}
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": list(plugins),
        "dataLayer": data_layer,
        "schedulingProfiles": [{"name": "default", "plugins": list(profile)}],
    }
    return json.dumps(document, indent=1)
