"""An EffectiveConfig as YAML: what `epp config show` and the start-up log print. Loading it again gives the same configuration."""

import io
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin

from ruamel.yaml import YAML

from epp.config.document import API_VERSION, KIND
from epp.config.effective import EffectiveConfig, Plugin
from epp.config.shape import Key, keys
from epp.config.units import format_duration
from epp.scheduling.params import Duration, NoEffect, NotYet
from epp.scheduling.registry import Role


def show(config: EffectiveConfig) -> str:
    """The whole document, every default written out; keys without effect only where they differ from the default."""
    data_layer: dict[str, object] = {"injectDefaults": config.inject_defaults}
    if config.discovery is not None:
        data_layer["discovery"] = _ref(config.discovery)
    data_layer["sources"] = [
        {**_ref(source.source), "extractors": [_ref(extractor) for extractor in source.extractors]} for source in config.sources
    ]
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "plugins": [_plugin(plugin) for plugin in config.plugins.values()],
        "schedulingProfiles": [
            {"name": profile.name, "plugins": [_entry(config, entry.plugin, entry.weight) for entry in profile.plugins]}
            for profile in config.profiles
        ],
        "dataLayer": data_layer,
        "requestHandler": {"parsers": [_ref(_named(config, parser)) for parser in config.parsers]},
    }
    yaml = YAML(typ="rt")
    yaml.width = 200
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _ref(name: str) -> dict[str, object]:
    return {"pluginRef": name}


def _named(config: EffectiveConfig, parser: str) -> str:
    """Name of the plugin of a parser type."""
    return next(name for name, plugin in config.plugins.items() if plugin.type.name == parser)


def _entry(config: EffectiveConfig, name: str, weight: float) -> dict[str, object]:
    return {**_ref(name), "weight": weight} if Role.SCORER in config.plugins[name].type.roles else _ref(name)


def _plugin(plugin: Plugin) -> dict[str, object]:
    shown: dict[str, object] = {"name": plugin.name, "type": plugin.type.name}
    parameters = _record(plugin.params)
    if parameters:
        shown["parameters"] = parameters
    return shown


def _record(record: Any) -> dict[str, object]:
    shown = {}
    kind: type = type(record)
    for key in keys(kind).values():
        value = getattr(record, key.field)
        silent = key.has(NoEffect) or key.has(NotYet)
        if value is not None and not (silent and value == key.default):
            shown[key.name] = _value(value, key)
    return {name: value for name, value in shown.items() if value != {} or name in _SWITCHES}


# Presence alone says something: the backend of a token producer.
_SWITCHES = frozenset(("local", "vllm", "estimate"))


def _value(value: object, key: Key) -> object:
    if _is_duration(key.kind) and isinstance(value, float):
        return format_duration(value)
    if isinstance(value, tuple):
        return [_record(item) if is_dataclass(item) else item for item in value]
    if is_dataclass(value):
        return _record(value)
    return dict(value) if isinstance(value, Mapping) else value


def _is_duration(kind: Any) -> bool:
    if kind is Duration:
        return True
    inner = get_args(kind)
    return any(_is_duration(each) for each in (inner[:1] if get_origin(kind) is Annotated else inner))
