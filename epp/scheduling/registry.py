"""Which plugin types exist: one record a type, found through the entry-point group `epp.plugins`.

A type comes from this package or from any other installed one, by the same door: an entry point whose name is the type
string and whose object is a PluginType. Nothing is registered by importing a module. Two packages that offer one type
are an error, never a silent overwrite.

Read once at start-up by epp.config; never on the request path.
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from epp.domain import DecisionId, EndpointId, TokenizedRequest, Usage
from epp.errors import ConfigError
from epp.scheduling.interfaces import Filter, Picker, PrefixHits, PrefixIndex, Producer, ProfileHandler, Scorer

GROUP = "epp.plugins"

P = TypeVar("P")


class Role(Enum):
    """Where a plugin may be named or does its work."""

    FILTER = "filter"
    SCORER = "scorer"
    PICKER = "picker"
    PROFILE_HANDLER = "profile handler"
    PRODUCER = "producer"
    TOKEN_PRODUCER = "token producer"  # noqa: S105  # a role, not a secret
    METRICS_SOURCE = "metrics source"
    METRICS_EXTRACTOR = "metrics extractor"
    ENDPOINT_SOURCE = "endpoint source"
    ENDPOINT_EXTRACTOR = "endpoint extractor"
    DISCOVERY = "discovery"
    PARSER = "parser"


PROFILE_ROLES = frozenset((Role.FILTER, Role.SCORER, Role.PICKER))
"""Roles a profile lists; every other role acts as soon as the plugin is declared."""

# What an instance must offer for the roles its type claims; the others are parameter records that epp.app reads.
INTERFACES: Mapping[Role, type] = MappingProxyType(
    {
        Role.FILTER: Filter,
        Role.SCORER: Scorer,
        Role.PICKER: Picker,
        Role.PROFILE_HANDLER: ProfileHandler,
        Role.PRODUCER: Producer,
    }
)


@dataclass(slots=True)
class _NoHits:
    tokens: list[int]
    offloaded: dict[str, list[int]] = field(default_factory=dict)


class EmptyIndex:
    """A PrefixIndex that holds nothing, for plugins that are only asked what they read and write."""

    def match(self, tokens: TokenizedRequest, endpoints: Sequence[EndpointId], now: float) -> PrefixHits:
        """No endpoint holds anything."""
        return _NoHits([0] * len(endpoints))

    def speculate(self, hits: PrefixHits, endpoint: EndpointId, until: float) -> None:
        """Forget it at once."""

    def unspeculate(self, endpoint: EndpointId) -> None:
        """There is nothing to forget."""

    def predict(
        self,
        hits: PrefixHits,
        endpoint: EndpointId,
        decision_id: DecisionId,
        model: str,
        now: float,
        ttl_s: float,
        *,
        reads_cache: bool,
    ) -> None:
        """Likewise."""

    def answer_ended(self, decision_id: DecisionId, *, served: bool, said: Usage | None) -> None:
        """Nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What factories may hand to their plugins: core state that epp.app owns. Built once, by epp.app."""

    index: PrefixIndex = field(default_factory=EmptyIndex)


@dataclass(frozen=True, slots=True)
class PluginType(Generic[P]):
    """One plugin type: how it is called, configured and made."""

    name: str
    """The type string of a configuration file."""
    params: type[P]
    """A frozen dataclass with a default for every field that is not mandatory (epp.scheduling.params)."""
    factory: Callable[[str, P, Collaborators], object]
    """(plugin name, parameters, collaborators) -> plugin; without side effects. ValueError: the parameters do not fit together."""
    roles: frozenset[Role]
    reads_bodies: bool = True
    """Its instances, or what is built of its parameters, look into `InferenceRequest.body`.

    Where no declared plugin does, no more is decoded than epp.requests.outline lists, odd requests aside: a completion's `prompt` is, what messages say is not.
    """


class Registry(Mapping[str, PluginType[Any]]):
    """The plugin types by type string."""

    def __init__(self, types: Iterable[PluginType[Any]]) -> None:
        """Raises ConfigError where two types have one name."""
        self._types: dict[str, PluginType[Any]] = {}
        for plugin_type in types:
            if plugin_type.name in self._types:
                raise ConfigError(f"plugin type {plugin_type.name!r} is offered twice: uninstall one of the packages that offer it")
            self._types[plugin_type.name] = plugin_type

    def __getitem__(self, type_: str) -> PluginType[Any]:
        return self._types[type_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)


def load(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Registry:
    """The types of every installed package. Raises ConfigError that names the package of a broken or doubled entry point."""
    found = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
    origins: dict[str, str] = {}
    types = []
    for entry_point in found:
        origin = entry_point.dist.name if entry_point.dist else entry_point.value
        if entry_point.name in origins:
            packages = " and ".join(sorted({origins[entry_point.name], origin}))
            raise ConfigError(f"plugin type {entry_point.name!r} is offered twice, by {packages}: uninstall or mend one")
        origins[entry_point.name] = origin
        types.append(_load_one(entry_point, origin))
    return Registry(types)


def _load_one(entry_point: importlib.metadata.EntryPoint, origin: str) -> PluginType[Any]:
    place = f"entry point {entry_point.name!r} of {origin}"
    try:
        loaded = entry_point.load()
    except Exception as error:
        raise ConfigError(f"{place}: {entry_point.value} cannot be imported: {error}") from error
    if not isinstance(loaded, PluginType):
        raise ConfigError(f"{place}: {entry_point.value} is no PluginType")
    if loaded.name != entry_point.name:
        raise ConfigError(f"{place}: {entry_point.value} has the type {loaded.name!r}; both names must be the same")
    return loaded
