"""Third step of loading.py: every datum somebody reads has a producer, and producers run after those they read (spec/plugins.md 1.7).

Plugins are asked what they read and write through trial instances that hold an empty index. A missing producer is made
with default parameters, transitively, where its type is built. Where llm-d would make an approximate prefix producer, readers
of prefix matches are bound to the precise one if that is declared.
"""

from collections.abc import Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from epp.config.decode import NOT_SUPPORTED_YET
from epp.config.draft import Draft, names
from epp.config.effective import Plugin
from epp.config.instances import instance, provided, required
from epp.config.known import DEFAULT_PRODUCERS
from epp.config.nodes import NOWHERE, did_you_mean
from epp.errors import ConfigError
from epp.plugins.producers.precise_prefix_cache import PrecisePrefixCacheParams
from epp.scheduling.interfaces import DataKey
from epp.scheduling.params import ReadsPrefixMatches
from epp.scheduling.registry import Collaborators, Role


def resolve(draft: Draft) -> tuple[str, ...]:
    """Names of the producers, in the order they run. Makes missing ones, binds readers, notes what cannot be resolved."""
    reads: dict[str, list[DataKey[Any]]] = {}
    writers: dict[DataKey[Any], str] = {}
    while new := [plugin for plugin in draft.plugins.values() if plugin.name not in reads]:
        _bind_prefix_readers(draft, new)
        for plugin in new:
            try:
                trial = instance(draft.plugins[plugin.name], Collaborators())
            except ConfigError as error:
                draft.problems.add(plugin.place, str(error))
                reads[plugin.name] = []
                continue
            reads[plugin.name] = list(required(trial))
            writers.update(dict.fromkeys(provided(trial), plugin.name))
        missing = {key: draft.plugins[name] for name, keys in reads.items() for key in keys if key not in writers}
        for key, reader in missing.items():
            _make_default(draft, key, reader, writers)
    return _order(draft, reads, writers)


def _bind_prefix_readers(draft: Draft, new: Sequence[Plugin]) -> None:
    """Name the one precise producer as the one to read from, where nothing else is named or declared."""
    precise = [plugin for plugin in draft.plugins.values() if isinstance(plugin.params, PrecisePrefixCacheParams)]
    if len(precise) != 1 or DEFAULT_PRODUCERS["PrefixCacheMatchInfo"] in draft.plugins:
        return
    bound = []
    for plugin in new:
        if isinstance(plugin.params, ReadsPrefixMatches) and not plugin.params.prefix_match_info_producer_name:
            draft.set_params(plugin, replace(plugin.params, prefix_match_info_producer_name=precise[0].name))
            bound.append(plugin)
    if declared := [plugin for plugin in bound if plugin.place != NOWHERE]:
        draft.warn(declared[0].place, f"{names(declared)}: without prefixMatchInfoProducerName, bound to {precise[0].name!r}")


def _make_default(draft: Draft, key: DataKey[Any], reader: Plugin, writers: dict[DataKey[Any], str]) -> None:
    """A producer of the key, if its producer is the default one; otherwise a problem."""
    default = DEFAULT_PRODUCERS.get(key.data)
    if default is None or key.producer not in (default, *draft.plugins):
        candidates = {writer.producer for writer in writers if writer.data == key.data}
        hint = did_you_mean(key.producer, candidates) or f"; declare a plugin {key.producer!r}"
        if default is None and not candidates:
            hint += " (dataLayer.injectDefaults does)"
        draft.problems.add(reader.place, f"{reader.name!r} reads {key.data} of {key.producer!r}, which is not declared{hint}")
    elif key.producer in draft.plugins:
        draft.problems.add(reader.place, f"{reader.name!r} reads {key.data} of {key.producer!r}, which produces no such thing")
    elif default in draft.registry:
        draft.ensure(default)
    else:
        draft.problems.add(reader.place, f"{reader.name!r} reads {key.data} of {default!r}, which is {NOT_SUPPORTED_YET}")


def _order(draft: Draft, reads: dict[str, list[DataKey[Any]]], writers: dict[DataKey[Any], str]) -> tuple[str, ...]:
    producers = [plugin.name for plugin in draft.with_role(Role.PRODUCER)]
    graph = {name: [writers[key] for key in reads[name] if key in writers] for name in producers}
    try:
        return tuple(name for name in TopologicalSorter(graph).static_order() if name in graph)
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        draft.problems.add(draft.plugins[error.args[1][0]].place, f"producers read each other in a circle: {circle}")
        return ()
