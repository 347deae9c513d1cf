"""file-discovery: the endpoints come from a file (spec/plugins.md 12.3). epp.app builds the source from it."""

from dataclasses import dataclass

from epp.plugins.declared import Declared
from epp.scheduling.registry import PluginType, Role

TYPE = "file-discovery"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDiscoveryParams:
    """Parameters of file-discovery."""

    path: str
    watch_file: bool = False
    """Follow changes; otherwise the file is read once."""


PLUGIN = PluginType(TYPE, FileDiscoveryParams, Declared, frozenset((Role.DISCOVERY,)), reads_bodies=False)
