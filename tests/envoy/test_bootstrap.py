"""What we ship and what the tests run is accepted by the real Envoy, and a mistake is shown in its own words."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ruamel.yaml import YAML

from epp import names
from epp.testing import bootstrap
from epp.testing.envoy import EnvoyError, EnvoyProcess, validate
from epp.testing.model_server import ModelServer

FOLDER = Path(__file__).parents[2] / "envoy"


@pytest.mark.parametrize("name", bootstrap.SHIPPED)
async def test_envoy_accepts_what_we_ship(name: str) -> None:
    """Each file as it stands, but for the place of the endpoints it follows."""
    text = json.dumps(YAML(typ="safe").load(FOLDER / name)).replace("/etc/envoy/endpoints.eds.yaml", str(FOLDER / "endpoints.eds.yaml"))
    await validate(json.loads(text))


async def test_envoy_accepts_the_baseline() -> None:
    """Without a picker, over IPv4 and IPv6."""
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


async def test_a_taken_port_is_an_error_even_when_another_envoy_has_it() -> None:
    """Envoys share a listening port by default, and each would get some of the connections."""
    pool = [("127.0.0.1", 8000)]
    async with EnvoyProcess(bootstrap.round_robin(listener=0, admin=0, endpoints=pool)) as first:
        admin = int(first.admin.rpartition(":")[2])

        with pytest.raises(EnvoyError, match=f"127.0.0.1:{first.port}': Address already in use"):
            async with EnvoyProcess(bootstrap.round_robin(listener=first.port, admin=0, endpoints=pool)):
                pass
        with pytest.raises(EnvoyError, match=f"127.0.0.1:{admin}': Address already in use"):
            async with EnvoyProcess(bootstrap.round_robin(listener=0, admin=admin, endpoints=pool)):
                pass


async def test_an_envoy_that_ends_by_itself_is_an_error() -> None:
    """A test that lost its Envoy is told so, whatever else it saw."""

    async def lose_envoy() -> None:
        async with (
            EnvoyProcess(bootstrap.round_robin(listener=0, admin=0, endpoints=[("127.0.0.1", 8000)])) as envoy,
            aiohttp.ClientSession() as client,
            client.post(f"{envoy.admin}/quitquitquit"),
        ):
            await envoy.wait()

    with pytest.raises(EnvoyError, match="ended with code 0"):
        await lose_envoy()


async def test_answers_can_tell_the_endpoint_they_came_from() -> None:
    """For endpoints that do not say it themselves; what one says itself stays."""
    async with (
        ModelServer("pod") as server,
        # Its admin interface stands for an endpoint that names nothing.
        EnvoyProcess(bootstrap.round_robin(listener=0, admin=0, endpoints=[("127.0.0.1", 8000)])) as silent,
        aiohttp.ClientSession() as client,
    ):
        quiet = silent.admin.removeprefix("http://")
        said = {}
        for host_port in (server.host_port, quiet):
            ip, _, port = host_port.rpartition(":")
            front = bootstrap.round_robin(listener=0, admin=0, endpoints=[(ip, int(port))], tell_endpoint=True)
            async with EnvoyProcess(front) as envoy, client.get(f"http://127.0.0.1:{envoy.port}/ready") as answer:
                said[host_port] = answer.headers[names.INFERENCE_POD]

    assert said == {server.host_port: "pod", quiet: quiet}


async def test_a_clients_request_id_is_kept_only_where_asked() -> None:
    """At an edge Envoy makes its own: what a client says is only a claim."""
    async with ModelServer("pod") as server, aiohttp.ClientSession() as client:
        for keep in (False, True):
            front = bootstrap.round_robin(listener=0, admin=0, endpoints=[("127.0.0.1", server.port)], keep_request_id=keep)
            async with (
                EnvoyProcess(front) as envoy,
                client.get(f"http://127.0.0.1:{envoy.port}/", headers={names.REQUEST_ID: "mine"}) as answer,
            ):
                seen = await answer.json()

            assert (seen["headers"][names.REQUEST_ID] == "mine") is keep
