"""anthropic-parser: the type that a configuration names (spec/plugins.md 9.2); epp.requests does the parsing."""

from epp.plugins.declared import Declared
from epp.scheduling.params import NoParams
from epp.scheduling.registry import PluginType, Role

TYPE = "anthropic-parser"

PLUGIN = PluginType(TYPE, NoParams, Declared, frozenset((Role.PARSER,)))
