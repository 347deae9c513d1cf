"""The effective configuration: every plugin with decoded parameters, every default applied, every reference resolved.

Immutable; made by loading.py, consumed by building.py, showing.py and epp.app. Everything it names exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from epp.config.nodes import NOWHERE, Place
from epp.plugins.datalayer.core_metrics_extractor import CoreMetricsParams
from epp.plugins.datalayer.file_discovery import FileDiscoveryParams
from epp.plugins.datalayer.metrics_data_source import MetricsSourceParams
from epp.plugins.producers.precise_prefix_cache import PrecisePrefixCacheParams
from epp.plugins.producers.token import TokenProducerParams
from epp.scheduling.registry import PluginType

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One declared plugin, or one that a default made."""

    name: str
    type: PluginType[Any]
    params: object
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class ProfilePlugin:
    """A plugin in a profile. The weight matters where it scores."""

    plugin: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """One scheduling profile: at least a picker."""

    name: str
    plugins: tuple[ProfilePlugin, ...]


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """A data source and what it feeds."""

    source: str
    extractors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EffectiveConfig:
    """What a document means. Plugins are named by their names."""

    source: str
    plugins: Mapping[str, Plugin]
    profiles: tuple[ProfileConfig, ...]
    handler: str
    producers: tuple[str, ...]
    """In the order they run."""
    sources: tuple[SourceConfig, ...]
    inject_defaults: bool
    discovery: str | None
    """None: endpoints come from Kubernetes."""
    parsers: tuple[str, ...]
    """Types, in order of preference."""
    warnings: list[str] = field(default_factory=list, compare=False)
    """Log lines about what was assumed, bound or ignored."""

    @property
    def file_discovery(self) -> FileDiscoveryParams | None:
        """Where the endpoints file is, if endpoints come from one."""
        return None if self.discovery is None else self._params(self.discovery, FileDiscoveryParams)

    @property
    def metrics_source(self) -> MetricsSourceParams | None:
        """How to read /metrics; None: nobody reads it."""
        return self._wired(MetricsSourceParams)

    @property
    def metrics_extractor(self) -> CoreMetricsParams | None:
        """What to take from /metrics."""
        return self._wired(CoreMetricsParams)

    @property
    def precise_prefix(self) -> PrecisePrefixCacheParams | None:
        """The index and its events, if a precise prefix producer is declared."""
        return self._first(PrecisePrefixCacheParams)

    @property
    def token_producers(self) -> tuple[TokenProducerParams, ...]:
        """Where token ids come from, one a model, each with exactly one backend; none: nothing needs them."""
        return tuple(plugin.params for plugin in self.plugins.values() if isinstance(plugin.params, TokenProducerParams))

    @property
    def reads_bodies(self) -> bool:
        """Some plugin looks into the bodies of requests."""
        return any(plugin.type.reads_bodies for plugin in self.plugins.values())

    def _params(self, name: str, kind: type[P]) -> P | None:
        params = self.plugins[name].params
        return params if isinstance(params, kind) else None

    def _first(self, kind: type[P]) -> P | None:
        return next((plugin.params for plugin in self.plugins.values() if isinstance(plugin.params, kind)), None)

    def _wired(self, kind: type[P]) -> P | None:
        names = [name for source in self.sources for name in (source.source, *source.extractors)]
        return next((params for name in names if (params := self._params(name, kind)) is not None), None)
