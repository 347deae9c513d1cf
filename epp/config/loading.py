"""Text of an EndpointPickerConfig to an EffectiveConfig, or to all that is wrong with it (spec/plugins.md 1).

Order: decode, identity and gates, plugins, profiles and data layer with their defaults, producers. Everything that can be
said without a running system is said here, so `epp config check` finds what serving would. Called by epp.cli and epp.app.
"""

import os.path
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from epp.config import dependencies, wiring
from epp.config.declare import Declarations
from epp.config.decode import NOT_SUPPORTED_YET, Decoder
from epp.config.document import API_VERSION, KIND, OLD_API_VERSION, Document
from epp.config.draft import Draft
from epp.config.effective import EffectiveConfig, Plugin
from epp.config.known import FEATURE_GATES, REMOVED_GATES
from epp.config.nodes import Node, Problems, did_you_mean, parse
from epp.errors import ConfigError
from epp.plugins.producers import precise_prefix_cache, token
from epp.plugins.producers.precise_prefix_cache import PrecisePrefixCacheParams
from epp.plugins.producers.token import EstimateBackend, LocalBackend, TokenProducerParams
from epp.scheduling.registry import Registry
from epp.scheduling.registry import load as load_registry

_TRUE = frozenset(("1", "t", "true"))
_FALSE = frozenset(("0", "f", "false"))


def load(text: str, source: str, registry: Registry, *, is_folder: Callable[[str], bool] = os.path.isdir) -> EffectiveConfig:
    """The configuration that `text` means; `source` names it in messages.

    Raises ConfigError with one line a problem: source, line, path, what and remedy.
    """
    root = parse(text, source)
    if root.value is None:
        raise ConfigError(f"{source}: the configuration is empty; pass an EndpointPickerConfig with --config-file or --config-text")
    problems = Problems(source)
    decoder = Decoder(problems)
    document = Decoder(problems, exact_keys=True, without_effect=decoder.without_effect).decode(root, Document)
    if document is None:
        problems.raise_if_any()
    assert document is not None
    draft = Draft(registry, problems)
    _identity(draft, document)
    _feature_gates(draft, document.feature_gates, decoder.without_effect)
    Declarations(draft, decoder).declare(document.plugins)
    config = _effective(draft, document, source, is_folder)
    problems.raise_if_any()
    if decoder.without_effect:
        config.warnings.append(f"{source}: accepted, without effect here: {', '.join(decoder.without_effect)}")
    return config


def _effective(draft: Draft, document: Document, source: str, is_folder: Callable[[str], bool]) -> EffectiveConfig:
    profiles = wiring.profiles(draft, document.scheduling_profiles)
    handler = wiring.handler(draft, profiles)
    parsers = wiring.parsers(draft, document)
    sources = wiring.sources(draft, document.data_layer)
    discovery = wiring.discovery(draft, document.data_layer)
    _only_one(draft)
    producers = () if draft.problems.found else dependencies.resolve(draft)
    _tokens(draft, is_folder)
    return EffectiveConfig(
        source=source,
        plugins=draft.plugins,
        profiles=profiles,
        handler=handler,
        producers=producers,
        sources=sources,
        inject_defaults=document.data_layer.inject_defaults,
        discovery=discovery,
        parsers=parsers,
        warnings=draft.warnings,
    )


def _identity(draft: Draft, document: Document) -> None:
    kind, version, place = document.kind, document.api_version, document.place
    if kind is None:
        draft.warn(place.key("kind", place.line), f"is missing; taken as {KIND}")
    elif kind != KIND:
        draft.problems.add(place.key("kind", place.line), f"must be {KIND}, not {kind!r}")
    if version == OLD_API_VERSION:
        draft.warn(place.key("apiVersion", place.line), f"{version!r} is deprecated; use {API_VERSION}")
    elif version is None:
        draft.warn(place.key("apiVersion", place.line), f"is missing; taken as {API_VERSION}")
    elif version != API_VERSION:
        draft.problems.add(place.key("apiVersion", place.line), f"must be {API_VERSION}, not {version!r}")


def _feature_gates(draft: Draft, gates: tuple[Node, ...], without_effect: list[str]) -> None:
    """`name` or `name=<bool>` (spec/plugins.md 1.4)."""
    for gate in gates:
        name, equals, value = str(gate.value).partition("=")
        name, value = name.strip(), value.strip().lower()
        if equals and value not in _TRUE | _FALSE:
            draft.problems.add(gate.place, f"feature gate {name!r} must be =true or =false, not {value!r}")
        elif name in REMOVED_GATES:
            draft.problems.add(gate.place, f"feature gate {name!r} {REMOVED_GATES[name]}; remove it")
        elif name not in FEATURE_GATES:
            draft.problems.add(gate.place, f"feature gate {name!r} is unknown or unregistered{did_you_mean(name, FEATURE_GATES)}")
        elif FEATURE_GATES[name] is None:
            without_effect.append(gate.place.path)
        elif value not in _FALSE:
            draft.problems.add(gate.place, f"feature gate {name!r} is {NOT_SUPPORTED_YET}; remove it")


def _only_one(draft: Draft) -> None:
    found = [plugin for plugin in draft.plugins.values() if isinstance(plugin.params, PrecisePrefixCacheParams)]
    if len(found) > 1:
        draft.problems.add(found[1].place, f"more than one {precise_prefix_cache.TYPE} is {NOT_SUPPORTED_YET}; keep one")
    models: set[str] = set()
    for plugin in draft.plugins.values():
        if isinstance(plugin.params, TokenProducerParams):
            if plugin.params.model_name in models:
                draft.problems.add(
                    plugin.place, f"another {token.TYPE} has the modelName {plugin.params.model_name!r}; each needs one of its own"
                )
            models.add(plugin.params.model_name)


def _tokens(draft: Draft, is_folder: Callable[[str], bool]) -> None:
    """Give the token producer its one backend, and say where exact matching would go without exact tokens."""
    for plugin in list(draft.plugins.values()):
        if isinstance(plugin.params, TokenProducerParams):
            _backend(draft, plugin, plugin.params, is_folder)
    exact = any(isinstance(plugin.params, TokenProducerParams) and plugin.params.exact for plugin in draft.plugins.values())
    for plugin in draft.plugins.values():
        if isinstance(plugin.params, PrecisePrefixCacheParams) and not exact:
            remedy = "declare a token-producer with `local` or `vllm`"
            draft.warn(plugin.place, f"{plugin.name!r} matches nothing: estimated tokens are not the engine's; {remedy}")


def _backend(draft: Draft, plugin: Plugin, params: TokenProducerParams, is_folder: Callable[[str], bool]) -> None:
    if params.vllm is None and params.estimate is None:
        folder = bool(params.model_name) and is_folder(params.model_name)
        local = params.local
        if local is None and not folder:
            params = replace(params, estimate=EstimateBackend())
        elif local is None or not (local.path or local.package):
            if not folder:
                place = plugin.place.key("parameters", plugin.place.line).key("local", plugin.place.line)
                draft.problems.add(place, f"path or package is missing, and modelName {params.model_name!r} is no folder")
            params = replace(params, local=replace(local or LocalBackend(), path=params.model_name))
    draft.set_params(plugin, params)


def load_file(path: Path, registry: Registry | None = None) -> EffectiveConfig:
    """The configuration in a file, by the plugin types of `registry` or of every installed package. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no UTF-8 text (byte {error.start})") from None
    return load(text, str(path), load_registry() if registry is None else registry)
