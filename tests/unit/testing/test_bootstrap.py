"""The bootstrap we ship is the one we test."""

from pathlib import Path

from ruamel.yaml import YAML

from epp.testing.bootstrap import standalone

SHIPPED = Path(__file__).parents[3] / "envoy" / "standalone.yaml"


def test_the_shipped_bootstrap_is_what_the_tests_run() -> None:
    """Whoever changes one has to change the other."""
    assert YAML(typ="safe").load(SHIPPED) == standalone(listener=8081, admin=19000, epp=9002, host="0.0.0.0")
