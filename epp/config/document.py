"""The document as it is written: one record a mapping of EndpointPickerConfig (spec/plugins.md 1.2, 1.3).

Decoded by decode.py, so field names are the keys. What it means, with all defaults, is epp.config.effective.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from epp.config.nodes import NOWHERE, Node, Place
from epp.scheduling.params import NO_EFFECT, NOT_YET, Duration

KIND = "EndpointPickerConfig"
API_VERSION = "llm-d.ai/v1alpha1"
OLD_API_VERSION = "inference.networking.x-k8s.io/v1alpha1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSpec:
    """`plugins[]`."""

    name: str | None = None
    type: str
    parameters: Node | None = None
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class RefSpec:
    """A mapping that only names a plugin."""

    plugin_ref: str
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePluginSpec:
    """`schedulingProfiles[].plugins[]`."""

    plugin_ref: str
    weight: float | None = None
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSpec:
    """`schedulingProfiles[]`."""

    name: str
    plugins: tuple[ProfilePluginSpec, ...] = ()
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """`dataLayer.sources[]`."""

    plugin_ref: str
    extractors: tuple[RefSpec, ...] = ()
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLayerSpec:
    """`dataLayer`."""

    inject_defaults: bool = True
    sources: tuple[SourceSpec, ...] = ()
    discovery: RefSpec | None = None
    peer_discovery: Annotated[object, NOT_YET] = None
    cross_replica_syncer_plugin_ref: Annotated[str, NOT_YET] = ""
    cross_replica_sync_interval: Annotated[Duration | None, NO_EFFECT] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHandlerSpec:
    """`requestHandler`."""

    parsers: tuple[RefSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The whole document."""

    api_version: str | None = None
    kind: str | None = None
    feature_gates: tuple[Node, ...] = ()
    plugins: tuple[PluginSpec, ...] = ()
    scheduling_profiles: tuple[ProfileSpec, ...] = ()
    data_layer: DataLayerSpec = field(default_factory=DataLayerSpec)
    request_handler: RequestHandlerSpec = field(default_factory=RequestHandlerSpec)
    parser: RefSpec | None = None
    flow_control: Annotated[object, NOT_YET] = None
    saturation_detector: Annotated[object, NOT_YET] = None
    place: Place = NOWHERE

    MOVED: ClassVar[dict[str, str]] = {"data": "is now called dataLayer"}
