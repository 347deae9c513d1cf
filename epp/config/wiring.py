"""Second step of loading.py: profiles, handler, parsers and data layer, with llm-d's defaults (spec/plugins.md 1.5, steps 4 to 7)."""

from collections.abc import Sequence

from epp.config.decode import NOT_SUPPORTED_YET
from epp.config.document import DataLayerSpec, Document, ProfilePluginSpec, ProfileSpec, RefSpec, SourceSpec
from epp.config.draft import Draft, names
from epp.config.effective import Plugin, ProfileConfig, ProfilePlugin, SourceConfig
from epp.config.known import TYPES
from epp.config.nodes import NOWHERE
from epp.plugins.datalayer import core_metrics_extractor, endpoint_notification_source, metrics_data_source
from epp.plugins.parsers import DEFAULTS
from epp.plugins.pickers import max_score
from epp.plugins.producers.precise_prefix_cache import PrecisePrefixCacheParams
from epp.plugins.profile_handlers import single
from epp.scheduling.registry import PROFILE_ROLES, Role

# Which extractors a source can feed.
FEEDS = {Role.METRICS_SOURCE: Role.METRICS_EXTRACTOR, Role.ENDPOINT_SOURCE: Role.ENDPOINT_EXTRACTOR}


def profiles(draft: Draft, specs: Sequence[ProfileSpec]) -> tuple[ProfileConfig, ...]:
    """The scheduling profiles, each with exactly one picker."""
    if not specs:
        everything = [plugin.name for plugin in draft.plugins.values() if plugin.type.roles & PROFILE_ROLES]
        return (_with_picker(draft, ProfileSpec(name="default"), [ProfilePlugin(name) for name in everything]),)
    made: dict[str, ProfileConfig] = {}
    for spec in specs:
        if not spec.name:
            draft.problems.add(spec.place, "name is empty")
        elif spec.name in made:
            draft.problems.add(spec.place, f"a profile {spec.name!r} exists already; give one of them another name")
        made[spec.name] = _with_picker(draft, spec, [entry for each in spec.plugins for entry in _entry(draft, each)])
    return tuple(made.values())


def _entry(draft: Draft, spec: ProfilePluginSpec) -> list[ProfilePlugin]:
    """The plugin of a profile, or nothing where it cannot be one."""
    plugin = draft.referred(spec.plugin_ref, spec.place)
    if plugin is None:
        return []
    if not plugin.type.roles & PROFILE_ROLES:
        draft.warn(spec.place, f"{plugin.name!r} is neither filter, scorer nor picker: naming it here has no effect")
        return []
    if spec.weight is not None and Role.SCORER not in plugin.type.roles:
        draft.warn(spec.place, f"the weight of {plugin.name!r} has no effect: it is no scorer")
    return [ProfilePlugin(plugin.name, 1.0 if spec.weight is None else spec.weight)]


def _with_picker(draft: Draft, spec: ProfileSpec, plugins: list[ProfilePlugin]) -> ProfileConfig:
    roles = [role for entry in plugins for role in draft.plugins[entry.plugin].type.roles]
    pickers = [draft.plugins[entry.plugin] for entry in plugins if Role.PICKER in draft.plugins[entry.plugin].type.roles]
    if len(pickers) > 1:
        draft.problems.add(spec.place, f"profile {spec.name!r} has more than one picker: {names(pickers)}; keep one")
    elif not pickers:
        declared = draft.with_role(Role.PICKER)
        if len(declared) > 1:
            draft.warn(
                spec.place, f"profile {spec.name!r} names no picker and several are declared: {declared[0].name!r}, the first, is used"
            )
        picker = declared[0] if declared else draft.ensure(max_score.TYPE)
        plugins = plugins if picker is None else [*plugins, ProfilePlugin(picker.name)]
    if Role.SCORER not in roles and not draft.broken:
        draft.warn(spec.place, f"profile {spec.name!r} has no scorers: endpoints are chosen at random")
    return ProfileConfig(spec.name, tuple(plugins))


def handler(draft: Draft, made: Sequence[ProfileConfig]) -> str:
    """Name of the one profile handler."""
    handlers = draft.with_role(Role.PROFILE_HANDLER)
    if len(handlers) > 1:
        draft.problems.add(handlers[1].place, f"more than one profile handler is declared: {names(handlers)}; keep one")
    if not handlers and len(made) == 1:
        handlers = [plugin for plugin in [draft.ensure(single.TYPE)] if plugin is not None]
    if not handlers:
        if not draft.broken:
            draft.problems.add(NOWHERE, f"{len(made)} profiles and no profile handler; declare one that chooses among them")
        return ""
    if handlers[0].type.name == single.TYPE and len(made) > 1:
        draft.problems.add(handlers[0].place, f"{single.TYPE} cannot choose among {len(made)} profiles; keep one profile")
    return handlers[0].name


def parsers(draft: Draft, document: Document) -> tuple[str, ...]:
    """Parser types, in order; a type that is named without being declared is declared by that."""
    refs = document.request_handler.parsers
    if document.parser is not None:
        used = "is a deprecated place of requestHandler.parsers" + (", which is given and wins" if refs else "")
        draft.warn(document.parser.place, used)
        refs = refs or (document.parser,)
    if not refs:
        return tuple(plugin.type.name for type_ in DEFAULTS if (plugin := draft.ensure(type_.name)) is not None)
    found = [plugin.type.name for ref in refs if (plugin := _parser(draft, ref)) is not None]
    return tuple(dict.fromkeys(found))


def _parser(draft: Draft, ref: RefSpec) -> Plugin | None:
    is_type = ref.plugin_ref in draft.registry or ref.plugin_ref in TYPES
    undeclared = is_type and ref.plugin_ref not in draft.plugins
    plugin = draft.ensure(ref.plugin_ref, ref.place) if undeclared else draft.referred(ref.plugin_ref, ref.place)
    if plugin is not None and Role.PARSER not in plugin.type.roles:
        draft.problems.add(ref.place, f"{plugin.name!r} is no parser")
        return None
    return plugin


def discovery(draft: Draft, spec: DataLayerSpec) -> str | None:
    """Name of the plugin that finds the endpoints; None: Kubernetes."""
    if spec.discovery is None:
        for unused in draft.with_role(Role.DISCOVERY):
            draft.warn(unused.place, f"{unused.name!r} has no effect: name it as dataLayer.discovery.pluginRef")
        return None
    plugin = draft.referred(spec.discovery.plugin_ref, spec.discovery.place)
    if plugin is not None and Role.DISCOVERY not in plugin.type.roles:
        draft.problems.add(spec.discovery.place, f"{plugin.name!r} finds no endpoints; name a discovery plugin such as file-discovery")
        return None
    return None if plugin is None else plugin.name


def sources(draft: Draft, spec: DataLayerSpec) -> tuple[SourceConfig, ...]:
    """Data sources and what they feed: as declared, then the metrics defaults, then the precise producer if nothing feeds it."""
    wired = [source for each in spec.sources if (source := _source(draft, each)) is not None]
    metrics = [source for source in wired if Role.METRICS_SOURCE in draft.plugins[source.source].type.roles]
    if len(metrics) > 1:
        draft.problems.add(draft.plugins[metrics[1].source].place, f"more than one metrics source is {NOT_SUPPORTED_YET}; keep one")
    if spec.inject_defaults and not metrics:
        defaults = (draft.ensure(metrics_data_source.TYPE), draft.ensure(core_metrics_extractor.TYPE))
        if None not in defaults:
            wired.append(SourceConfig(metrics_data_source.TYPE, (core_metrics_extractor.TYPE,)))
    return tuple(_feed_precise(draft, wired))


def _source(draft: Draft, spec: SourceSpec) -> SourceConfig | None:
    source = draft.referred(spec.plugin_ref, spec.place)
    fed = [plugin for ref in spec.extractors if (plugin := draft.referred(ref.plugin_ref, ref.place)) is not None]
    if source is None:
        return None
    wanted = next((extractor for role, extractor in FEEDS.items() if role in source.type.roles), None)
    if wanted is None:
        draft.problems.add(spec.place, f"{source.name!r} is no data source")
        return None
    for plugin in fed:
        if wanted not in plugin.type.roles:
            draft.problems.add(spec.place, f"{source.name!r} cannot feed {plugin.name!r}, which is no {wanted.value}")
    if not fed and not spec.extractors:
        draft.warn(spec.place, f"{source.name!r} feeds nothing; list its extractors")
    return SourceConfig(source.name, tuple(plugin.name for plugin in fed))


def _feed_precise(draft: Draft, wired: list[SourceConfig]) -> list[SourceConfig]:
    """llm-d leaves an unwired precise producer without events, and all its scores 0 (spec/plugins.md 18.10): wire it."""
    fed = {name for source in wired for name in source.extractors}
    for plugin in list(draft.plugins.values()):
        if not isinstance(plugin.params, PrecisePrefixCacheParams):
            continue
        events = plugin.params.kv_events_config
        if not events.discover_pods and events.zmq_endpoint:
            continue
        if not events.discover_pods:
            draft.warn(
                plugin.place,
                f"{plugin.name!r} subscribes to no endpoint (kvEventsConfig.discoverPods: false): it knows only what it speculated itself",
            )
        elif plugin.name not in fed:
            declared = draft.with_role(Role.ENDPOINT_SOURCE)
            source = declared[0] if declared else draft.ensure(endpoint_notification_source.TYPE)
            if source is not None:
                draft.warn(plugin.place, f"{plugin.name!r} is fed by no source and was wired to {source.name!r}")
                wired = _add(wired, source.name, plugin.name)
    return wired


def _add(wired: list[SourceConfig], source: str, extractor: str) -> list[SourceConfig]:
    if all(each.source != source for each in wired):
        return [*wired, SourceConfig(source, (extractor,))]
    return [SourceConfig(each.source, (*each.extractors, extractor)) if each.source == source else each for each in wired]
