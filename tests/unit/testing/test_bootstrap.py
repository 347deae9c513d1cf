"""The bootstraps we ship: written by tools/envoy.py, and made of fields that Envoy's own API knows."""

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from epp.testing import bootstrap

with warnings.catch_warnings():
    # The package is made for an older pydantic, which its import complains about.
    warnings.simplefilter("ignore")
    from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap

FOLDER = Path(__file__).parents[3] / "envoy"
LISTED = ["standalone.yaml", "override-host.yaml"]


def shipped(name: str) -> Any:
    return YAML(typ="safe").load(FOLDER / name)


def test_the_shipped_bootstraps_are_what_the_tests_run() -> None:
    """Whoever changes one has to change the other: `make envoy`."""
    assert {path.name for path in FOLDER.glob("*.yaml")} == {*bootstrap.SHIPPED, "endpoints.eds.yaml"}
    for name, content in bootstrap.SHIPPED.items():
        assert shipped(name) == content, f"{name}: run `make envoy`"


def split(value: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A configuration without its typed parts, and these, each without its own."""
    if isinstance(value, list):
        parts = [split(member) for member in value]
        return [part for part, _ in parts], [typed for _, found in parts for typed in found]
    if not isinstance(value, dict):
        return value, []
    rest: dict[str, Any] = {}
    typed: list[dict[str, Any]] = []
    for key, member in value.items():
        if isinstance(member, dict) and "@type" in member:
            inner, found = split(member)
            typed += [inner, *found]
        else:
            rest[key], found = split(member)
            typed += found
    return rest, typed


def classes(typed: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each typed part with the class of envoy-data-plane that its @type names."""
    for part in typed:
        package, _, name = part["@type"].rpartition("/")[2].rpartition(".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(f"envoy_data_plane.{package}")
        yield getattr(module, name), {k: v for k, v in part.items() if k != "@type"}


@pytest.mark.parametrize("name", bootstrap.SHIPPED)
def test_every_field_exists(name: str) -> None:
    """An independent copy of Envoy's API parses the whole file and each typed part; it refuses unknown fields."""
    outer, typed = split(shipped(name))
    Bootstrap.from_dict(outer)
    for cls, content in classes(typed):
        cls.from_dict(content)
    assert len(typed) >= 7


def test_a_misspelt_field_would_be_seen() -> None:
    """The check above bites."""
    outer, _ = split(shipped("sidecar.yaml"))
    outer["static_resources"]["clusters"][0]["conect_timeout"] = "5s"
    with pytest.raises(KeyError, match="conect_timeout"):
        Bootstrap.from_dict(outer)


@pytest.mark.parametrize("name", LISTED)
def test_each_listed_instance_has_its_own_log_and_cluster(name: str) -> None:
    """A log stream reaches only one picker, so where instances are listed each gets every entry."""
    content = shipped(name)
    clusters = {cluster["name"]: cluster for cluster in content["static_resources"]["clusters"]}
    manager = content["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    loggers = [log["typed_config"]["common_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] for log in manager["access_log"]]
    instances = clusters["epp"]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert len(loggers) == len(instances) == 2
    assert [clusters[logger]["load_assignment"]["endpoints"][0]["lb_endpoints"] for logger in loggers] == [
        [instance] for instance in instances
    ]
