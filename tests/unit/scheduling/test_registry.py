"""Finding plugin types: the shipped ones, and what is said about broken packages."""

from importlib.metadata import EntryPoint

import pytest

from epp.errors import ConfigError
from epp.plugins.parsers import DEFAULTS
from epp.requests import DEFAULT_PARSERS, PARSER_TYPES
from epp.scheduling import registry
from epp.scheduling.registry import GROUP, Role

SHIPPED = """
active-request-scorer core-metrics-extractor decode-filter endpoint-notification-source file-discovery inflight-load-producer
kv-cache-utilization-scorer max-score-picker metrics-data-source no-hit-lru-scorer openai-parser passthrough-parser
precise-prefix-cache-producer prefix-cache-scorer queue-scorer random-picker single-profile-handler token-producer
""".split()


def entry_point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_the_installed_package_offers_its_plugin_types() -> None:
    """Every type of this slice is found through the package's own metadata, with a default or a mandatory parameter record."""
    assert set(SHIPPED) <= set(registry.load())


@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        ([("queue-scorer", "epp.plugins.scorers.queue:PLUGIN")] * 2, "'queue-scorer' is offered twice"),
        ([("x", "epp.plugins.nowhere:PLUGIN")], "entry point 'x' of epp.plugins.nowhere:PLUGIN: .* cannot be imported"),
        ([("x", "epp.plugins.scorers.queue:QueueScorer")], "is no PluginType"),
        ([("x", "epp.plugins.scorers.queue:PLUGIN")], "has the type 'queue-scorer'; both names must be the same"),
    ],
)
def test_a_broken_offer_is_refused_by_name(entry_points: list[tuple[str, str]], message: str) -> None:
    """Nothing is overwritten or skipped silently: the package and the reason are named."""
    with pytest.raises(ConfigError, match=message):
        registry.load([entry_point(name, value) for name, value in entry_points])


def test_a_registry_made_by_hand_refuses_doubles_too() -> None:
    """Tests and embedders get the same protection."""
    types = list(registry.load().values())
    with pytest.raises(ConfigError, match="is offered twice"):
        registry.Registry([*types, types[0]])


def test_every_parser_that_reads_requests_can_be_configured() -> None:
    """Types are named twice, where they claim paths and where they are offered: the two lists are one."""
    offered = {name for name, type_ in registry.load().items() if Role.PARSER in type_.roles}
    assert offered == set(PARSER_TYPES)
    assert tuple(type_.name for type_ in DEFAULTS) == DEFAULT_PARSERS
