"""endpoint-notification-source: tells plugins which endpoints come and go (spec/plugins.md 12.1). epp.app wires the datastore to them."""

from epp.plugins.declared import Declared
from epp.scheduling.params import NoParams
from epp.scheduling.registry import PluginType, Role

TYPE = "endpoint-notification-source"


PLUGIN = PluginType(TYPE, NoParams, Declared, frozenset((Role.ENDPOINT_SOURCE,)), reads_bodies=False)
