"""Parsers as a configuration names them (spec/plugins.md 9.2): declarations without parameters; epp.requests does the parsing.

What each claims is a row of `epp.requests.parsers.PARSER_TYPES`; a type has its entry point in pyproject.toml, as any plugin.
"""

from epp.plugins.declared import Declared
from epp.scheduling.params import NoParams
from epp.scheduling.registry import PluginType, Role


def _parser(type_name: str) -> PluginType[NoParams]:
    return PluginType(type_name, NoParams, Declared, frozenset((Role.PARSER,)), reads_bodies=False)


OPENAI = _parser("openai-parser")
ANTHROPIC = _parser("anthropic-parser")
VLLM_HTTP = _parser("vllmhttp-parser")
SGLANG = _parser("sglanghttp-parser")
VLLM_GRPC = _parser("vllmgrpc-parser")
VERTEX_AI = _parser("vertexai-parser")
PASSTHROUGH = _parser("passthrough-parser")

DEFAULTS = (OPENAI, ANTHROPIC, VLLM_HTTP, PASSTHROUGH)
"""Where a configuration names none (spec/protocol.md 2.3.12)."""
