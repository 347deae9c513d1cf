"""What we ship and what the tests run is accepted by the real Envoy, and a mistake is shown in its own words."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from epp.testing import bootstrap
from epp.testing.envoy import EnvoyError, EnvoyProcess, validate

SHIPPED = Path(__file__).parents[2] / "envoy" / "standalone.yaml"


async def test_envoy_accepts_every_variant() -> None:
    """The shipped file, the full-duplex variant and the baseline without a picker."""
    await validate(YAML(typ="safe").load(SHIPPED))
    await validate(bootstrap.standalone(listener=0, admin=0, epp=9002, responses=bootstrap.Responses.FULL_DUPLEX, keep_request_id=True))
    await validate(bootstrap.round_robin(listener=0, admin=0, endpoints=[("127.0.0.1", 8000), ("::1", 8000)]))


async def test_a_broken_configuration_shows_what_envoy_says() -> None:
    """Neither validation nor a start hides Envoy's own message."""
    broken: dict[str, Any] = bootstrap.round_robin(listener=0, admin=0, endpoints=[("127.0.0.1", 8000)])
    broken["static_resources"]["clusters"][0]["lb_policy"] = "ROUND_ROBBIN"

    with pytest.raises(EnvoyError, match="ROUND_ROBBIN"):
        await validate(broken)
    with pytest.raises(EnvoyError, match="ROUND_ROBBIN"):
        async with EnvoyProcess(broken):
            pass
