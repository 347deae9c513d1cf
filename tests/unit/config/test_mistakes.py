"""What each mistake in an EndpointPickerConfig is told: the place and the remedy, and never a stack trace."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp import config
from epp.errors import ConfigError
from epp.scheduling import registry

REGISTRY = registry.load()
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(HEAD + text, "c.yaml", REGISTRY, is_folder=lambda _: False)
    return str(caught.value)


PRECISE = "plugins: [{type: precise-prefix-cache-producer, parameters: %s}]"
TOKENS = "plugins: [{type: token-producer, parameters: %s}, {type: queue-scorer}]"
SCORER = "plugins: [{type: prefix-cache-scorer, parameters: %s}]"

MISTAKES = [
    ("plugins: [{type: queue-scorrer}]", "line 3: plugins[0].type: unknown 'queue-scorrer', did you mean 'queue-scorer'?"),
    ("plugins: [{type: xyz}]", "unknown 'xyz'; supported are active-request-scorer, "),
    ("plugins:\n- name: x", "line 4: plugins[0]: type is missing"),
    ("plugins: [{type: ''}]", "plugins[0].type: is empty"),
    ("plugins: {type: queue-scorer}", "plugins: must be a list, not a mapping"),
    ("plugins: [{type: queue-scorer}, {type: queue-scorer}]", "plugins[1]: the name 'queue-scorer' is taken by another plugin"),
    ("plugins: [{type: model-server-protocol-metrics}]", "'model-server-protocol-metrics' no longer exists; use core-metrics-extractor"),
    ("plugins: [{type: precise-prefix-cache-scorer}]", "not supported yet; declare precise-prefix-cache-producer and prefix-cache-scorer"),
    ("plugins: [{type: file-discovery}]", "plugins[0].parameters: path is missing"),
    ("plugin: []", "line 3: plugin: unknown key, did you mean 'plugins'?"),
    ("data: {}", "line 3: data: is now called dataLayer"),
    ("plugins: [{type: a, typ: b}]", "plugins[0].typ: unknown key, did you mean 'type'?"),
    (SCORER % "{matchLengthWeigth: 1}", "parameters.matchLengthWeigth: unknown key, did you mean 'matchLengthWeight'?"),
    (SCORER % "{blockSize: 16}", "parameters.blockSize: this is a parameter of approx-prefix-cache-producer"),
    (SCORER % "{matchLengthWeight: 1.5}", "matchLengthWeight: 1.5 is out of range, must be 0 to 1"),
    (SCORER % "{matchLengthWeight: .nan}", "matchLengthWeight: must be a finite number"),
    (SCORER % "{matchLengthWeight: 1, matchLengthScaleTokens: 0}", "matchLengthScaleTokens: must be above 0"),
    (SCORER % "{matchLengthWeight: '1'}", "matchLengthWeight: must be a number, not '1'"),
    (SCORER % "[]", "parameters: must be a mapping, not a list"),
    (PRECISE % "{speculativeTTL: 2}", 'speculativeTTL: must be a duration such as "50ms", "2s" or "1m30s", not 2'),
    (PRECISE % "{speculativeTTL: 2 s}", "speculativeTTL: must be a duration"),
    (PRECISE % "{speculativeIndexing: yes}", "speculativeIndexing: must be true or false, not 'yes'"),
    (PRECISE % "{tokenProcessorConfig: {blockSizeTokens: 16.0}}", "blockSizeTokens: must be a whole number, not 16.0"),
    (PRECISE % "{tokenProcessorConfig: {blockSizeTokens: -1}}", "blockSizeTokens: -1 is out of range"),
    (PRECISE % "{tokenProcessorConfig: {hashAlgorithm: sha256}}", "hashAlgorithm: unknown 'sha256'; allowed are cbor-fnv, xxh64"),
    (PRECISE % "{tokenProcessorConfig: {hashSeed: 42}}", "hashSeed: must be text, not 42"),
    (PRECISE % "{indexerConfig: {tokenProcessorConfig: {}}}", "stands beside indexerConfig, no longer in it"),
    (PRECISE % "{indexerConfig: {tokenizersPoolConfig: {}}}", "token ids come from a token-producer"),
    (PRECISE % "{indexerConfig: {kvCacheBackendConfigs: [{name: gpu, weight: 2}]}}", "weight: 2.0 is out of range, must be 0 to 1"),
    (PRECISE % "{indexerConfig: {kvCacheBackendConfigs: [{weight: 1}]}}", "name"),
    (PRECISE % "{indexerConfig: {kvBlockIndexConfig: {inMemoryConfig: {size: big}}}}", "size: must be a whole number, not 'big'"),
    (PRECISE % "{kvEventsConfig: {engineType: trt}}", "engineType: unknown 'trt'; allowed are vllm, sglang"),
    (PRECISE % "{kvEventsConfig: {podDiscoveryConfig: {socketPort: 70000}}}", "socketPort: 70000 is out of range, must be 1 to 65535"),
    (PRECISE % "{speculativeTTL: 1s, speculativettl: 1s}", "speculativettl: is given twice, in different spellings"),
    (TOKENS % "{vllm: {}}", "modelName: is needed with vllm"),
    (TOKENS % "{modelName: x, vllm: {}, estimate: {}}", "vllm, estimate: only one of them can be given"),
    (TOKENS % "{modelName: x, vllm: {url: 'localhost:8000'}}", "url: 'localhost:8000' must begin with http:// or https://"),
    (TOKENS % "{udsTokenizerConfig: {useTCP: true}}", "udsTokenizerConfig: known, not supported yet"),
    (TOKENS % "{local: {path: a, package: b}}", "path, package: only one of them can be given"),
    (TOKENS % "{modelName: x, local: {}}", "local: path or package is missing, and modelName 'x' is no folder"),
    (
        "plugins: [{type: token-producer}, {type: token-producer, name: t}]",
        "another token-producer has the modelName ''; each needs one of its own",
    ),
    (TOKENS % "{local: {defaultChatTemplateKwargs: 3}}", "defaultChatTemplateKwargs: must be a mapping, not 3"),
    (TOKENS % "{modelName: x, vllm: {timeout: 0s}}", "timeout, mmTimeout: must be above 0s"),
    ("plugins: [{type: inflight-load-producer, parameters: {outputRatio: -1}}]", "outputRatio: must not be negative"),
    (
        "plugins: [{type: inflight-load-producer, parameters: {maxEstimatedOutputTokens: -1}}]",
        "maxEstimatedOutputTokens: must not be negative",
    ),
    ("plugins: [{type: queue-scorer}, {type: core-metrics-extractor, parameters: {x: 1}}]", "plugins[1].parameters.x: unknown key"),
    (
        "plugins: [{type: active-request-scorer}, {type: inflight-load-producer, parameters: {x: 1}}]",
        "plugins[1].parameters.x: unknown key",
    ),
    ("schedulingProfiles: [{name: ''}]", "schedulingProfiles[0]: name is empty"),
    ("featureGates: [flowControl]", "featureGates[0]: feature gate 'flowControl' is known, not supported yet"),
    ("featureGates: [dataLayer]", "feature gate 'dataLayer' is always on; remove it"),
    ("featureGates: [flowcontrol]", "feature gate 'flowcontrol' is unknown or unregistered, did you mean 'flowControl'?"),
    ("featureGates: [flowControl=maybe]", "must be =true or =false, not 'maybe'"),
    ("saturationDetector: {pluginRef: utilization-detector}", "saturationDetector: known, not supported yet"),
    ("schedulingProfiles: [{name: a}, {name: a}]", "schedulingProfiles[1]: a profile 'a' exists already"),
    ("schedulingProfiles: [{name: a}, {name: b}]", "2 profiles and no profile handler"),
    ("schedulingProfiles: [{plugins: []}]", "schedulingProfiles[0]: name is missing"),
    ("schedulingProfiles: [{name: a, plugins: [{pluginRef: ''}]}]", "plugins[0]: pluginRef is empty"),
    ("plugins: [{type: random-picker}, {type: max-score-picker}]", "profile 'default' has more than one picker"),
    ("plugins: [{type: single-profile-handler}, {type: single-profile-handler, name: b}]", "more than one profile handler is declared"),
    (
        "plugins: [{type: single-profile-handler}]\nschedulingProfiles: [{name: a}, {name: b}]",
        "single-profile-handler cannot choose among 2 profiles",
    ),
    (
        "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorrer}]}]",
        "line 4: schedulingProfiles[0].plugins[0]: no plugin 'queue-scorrer' is declared, did you mean 'queue-scorer'?",
    ),
    ("dataLayer: {sources: [{pluginRef: nowhere}]}", "no plugin 'nowhere' is declared; add it to plugins"),
    ("plugins: [{type: queue-scorer}]\ndataLayer: {sources: [{pluginRef: queue-scorer}]}", "'queue-scorer' is no data source"),
    ("plugins: [{type: queue-scorer}]\ndataLayer: {discovery: {pluginRef: queue-scorer}}", "'queue-scorer' finds no endpoints"),
    (
        """
plugins: [{type: metrics-data-source, name: m}, {type: inflight-load-producer}]
dataLayer: {sources: [{pluginRef: m, extractors: [{pluginRef: inflight-load-producer}]}]}""",
        "'m' cannot feed 'inflight-load-producer', which is no metrics extractor",
    ),
    (
        """
plugins: [{type: metrics-data-source, name: a}, {type: metrics-data-source, name: b}]
dataLayer: {sources: [{pluginRef: a}, {pluginRef: b}]}""",
        "plugins[1]: more than one metrics source is known, not supported yet; keep one",
    ),
    ("plugins: [{type: metrics-data-source, parameters: {path: metrics}}]", "path: 'metrics' must begin with /"),
    ("plugins: [{type: metrics-data-source, parameters: {interval: 0s}}]", "interval: must be above 0s"),
    ("plugins: [{type: queue-scorer, name: single-profile-handler}]", "the name 'single-profile-handler' is needed for the default"),
    ("plugins: [{type: queue-scorer, name: metrics-data-source}]", "the name 'metrics-data-source' is needed for the default"),
    (
        "plugins: [{type: precise-prefix-cache-producer}, {type: queue-scorer, name: endpoint-notification-source}]",
        "plugins[1]: the name 'endpoint-notification-source' is needed for the default",
    ),
    ("plugins: [{type: max-score-picker, parameters: {maxNum: 1}}]", "parameters.maxNum: unknown key"),
    ("requestHandler: {parsers: [{pluginRef: queue-scorer}]}", "'queue-scorer' is no parser"),
    ("plugins: []\nplugins: []", "line 4: the key is given twice; keep one"),
    ("plugins: [", "line 3: "),
    ("plugins: !secret x", "line 3: plugins: a value of this kind is not understood"),
    ("1: x", "the key 1 must be text"),
    ("x: " + "[" * 600, "nested too deeply"),
    ("---\nx: 1", "line "),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text[:60] for text, _ in MISTAKES])
def test_a_mistake_is_told_with_place_and_remedy(text: str, message: str) -> None:
    """Every line of the error begins with the file, and one of them is the expected sentence."""
    told = refused(text)
    assert message in told
    assert all(line.startswith("c.yaml: ") for line in told.splitlines())


def test_what_a_misspelt_plugin_is_called_elsewhere_is_no_second_mistake() -> None:
    """Mending the one place mends the profile, too: nothing sends the reader to another plugin."""
    text = """
plugins: [{type: queue-scorrer}, {type: random-picker}]
schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}, {pluginRef: random-picker}]}]"""
    with pytest.raises(ConfigError) as caught:
        config.load(HEAD + text, "c.yaml", REGISTRY)
    assert str(caught.value) == "c.yaml: line 4: plugins[0].type: unknown 'queue-scorrer', did you mean 'queue-scorer'?"


def test_all_mistakes_are_told_at_once_in_order() -> None:
    """A user mends the file once, not once a mistake."""
    told = refused("plugins:\n- {type: queue-scorrer}\n- {type: decode-filter, nam: x}\nfeatureGates: [x]\nunknown: 1")
    assert [re.match(r"c\.yaml: line (\d+)", line)[1] for line in told.splitlines()] == ["5", "7"]  # type: ignore[index]  # the assertion
    told = refused("plugins:\n- {type: queue-scorrer}\n- {type: max-score-picker, parameters: {x: 1, y: 2}}\nfeatureGates: [x]")
    assert [re.match(r"c\.yaml: line (\d+)", line)[1] for line in told.splitlines()] == ["4", "5", "5", "6"]  # type: ignore[index]  # the same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the configuration is empty"),
        ("# nothing", "the configuration is empty"),
        ("[]", "must be a mapping, not a list"),
        ("kind: Pod", "kind: must be EndpointPickerConfig, not 'Pod'"),
        ("kind: EndpointPickerConfig\napiVersion: v1", "apiVersion: must be llm-d.ai/v1alpha1, not 'v1'"),
        ("\x00", "c.yaml: "),
    ],
)
def test_what_is_no_configuration_at_all(text: str, message: str) -> None:
    """Empty text, another kind, another version, no YAML."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.load(text, "c.yaml", REGISTRY)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a folder, no text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("missing", "cannot be read: No such file"),
        ("", "cannot be read: Is a directory"),
        ("binary", "is no UTF-8 text"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.load_file(tmp_path / name, REGISTRY)


words = st.sampled_from(
    [*REGISTRY, "plugins", "type", "name", "parameters", "pluginRef", "weight", "default", "schedulingProfiles", "dataLayer", "sources"]
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(
    document=st.fixed_dictionaries(
        {},
        optional={
            "plugins": trees | st.lists(st.fixed_dictionaries({"type": words}, optional={"name": trees, "parameters": trees}), max_size=6),
            "schedulingProfiles": trees,
            "dataLayer": trees,
            "featureGates": trees,
            "requestHandler": trees,
        },
    )
)
@example({"plugins": [{"type": "queue-scorer", "name": None, "parameters": None}]})
def test_no_document_makes_anything_but_a_configuration_error(document: dict[str, object]) -> None:
    """Whatever a file holds, the answer is a configuration or sentences, never a stack trace."""
    assert all(line.startswith("c.yaml: ") for line in told(yaml_of(document)))


def told(text: str) -> list[str]:
    """The lines of the error, if there is one."""
    try:
        config.load(text, "c.yaml", REGISTRY, is_folder=lambda _: False)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def yaml_of(document: object) -> str:
    """JSON is YAML; a float that JSON cannot say becomes YAML's."""
    return json.dumps(document).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
