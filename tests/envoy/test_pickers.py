"""Several pickers, pickers that come and go, and endpoints that Envoy knows itself."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from epp import names
from epp.testing import bootstrap
from epp.testing.bootstrap import Responses
from epp.testing.envoy import EnvoyProcess
from epp.testing.model_server import STREAM, ModelServer
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually
from tests.envoy.rig import ANSWER, BODY, COMPLETIONS, EVENTS, MakeRig, config, write_endpoints

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Longer than Envoy needs to see NOT_SERVING: two looks a second apart.
DRAIN_S = 4


async def in_flight(picker: PickerProcess) -> float:
    """What a picker believes to be in flight."""
    return sum(value for name, value in (await picker.metrics()).items() if name.startswith("llm_d_epp_request_running"))


async def requests(picker: PickerProcess) -> float:
    """How many a picker has routed."""
    return sum(value for name, value in (await picker.metrics()).items() if name.startswith("llm_d_epp_request_total"))


@contextlib.asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[list[PickerProcess], ModelServer, EnvoyProcess, aiohttp.ClientSession]]:
    """Two pickers behind one Envoy in our default mode."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(ModelServer("pod"))
        file = folder / "endpoints.json"
        write_endpoints(file, [server.host_port])
        flags = [f"--config-text={config(file)}", "--transport=fast", f"--drain-timeout={DRAIN_S}s"]
        pickers = [await stack.enter_async_context(PickerProcess([*flags, f"--instance-id=epp-{n}"])) for n in range(2)]
        addresses = tuple(("127.0.0.1", picker.grpc_port) for picker in pickers)
        front = bootstrap.front(
            listener=0, admin=0, pickers=bootstrap.Pickers(addresses), upstream=bootstrap.original_destination(), keep_request_id=True
        )
        envoy = await stack.enter_async_context(EnvoyProcess(front))
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        yield pickers, server, envoy, client


async def test_two_pickers_behind_one_envoy(tmp_path: Path) -> None:
    """Both route, each gives back what it routed and nothing else; the other's entries are counted and left alone."""
    async with pair(tmp_path) as (pickers, server, envoy, client):
        await server.allow(1)
        url = f"http://127.0.0.1:{envoy.port}{COMPLETIONS}"
        answers = [await client.post(url, data=BODY, headers={STREAM: "2"}) for _ in range(40)]
        shares = [await requests(picker) for picker in pickers]
        assert min(shares) > 0
        assert sum(shares) == 40
        assert [await in_flight(picker) for picker in pickers] == shares
        for answer in answers[:10]:
            answer.close()
        await server.allow(2)

        async def all_back() -> bool:
            return [await in_flight(picker) for picker in pickers] == [0, 0]

        await eventually(all_back)

        async def others_counted() -> bool:
            unmatched = 'epp_unmatched_access_log_entries_total{reason="other_instance"}'
            return [(await picker.metrics()).get(unmatched, 0.0) for picker in pickers] == shares[::-1]

        await eventually(others_counted)


async def test_a_rolling_restart_loses_nothing(tmp_path: Path) -> None:
    """Each of two pickers is restarted in turn with SIGTERM, under load: no request fails."""
    async with pair(tmp_path) as (pickers, server, envoy, client):
        await server.allow()
        url = f"http://127.0.0.1:{envoy.port}{COMPLETIONS}"
        failed: list[str] = []
        served = 0
        over = asyncio.Event()

        async def load() -> None:
            nonlocal served
            while not over.is_set():
                async with client.post(url, data=BODY, headers={STREAM: "3"}) as answer:
                    text = await answer.read()
                if answer.status == 200:
                    served += 1
                else:
                    failed.append(f"{answer.status} {text!r}")

        workers = [asyncio.create_task(load()) for _ in range(8)]
        for picker in pickers:
            assert await picker.signal(signal.SIGTERM) == 0
            await picker.restart()
            await healthy(envoy, 2)
            goal = served + 100
            await eventually(partial(_reached, lambda: served, goal))
        over.set()
        await asyncio.gather(*workers)
        assert failed == []


def _reached(count: Callable[[], int], goal: int) -> bool:
    return count() >= goal


async def healthy(envoy: EnvoyProcess, count: int) -> None:
    """Wait until Envoy's health checks pass for so many pickers."""

    async def reached() -> bool:
        return (await envoy.stats("cluster.epp.membership_healthy"))["cluster.epp.membership_healthy"] == count

    await eventually(reached)


async def test_full_duplex_ties_answers_to_the_picker(make_rig: MakeRig) -> None:
    """With a gateway's modes kill -9 of epp cuts the answers that stream: the reason why ours are others (spec/protocol.md 10.1)."""
    async with make_rig("--transport=fast", responses=Responses.FULL_DUPLEX) as rig:
        streaming = [await rig.start_stream() for _ in range(4)]
        await rig.picker.kill()
        await rig.allow(EVENTS)
        for answer in streaming:
            with pytest.raises(aiohttp.ClientError):
                await answer.read()


async def test_a_drained_picker_cuts_no_answer(make_rig: MakeRig) -> None:
    """SIGTERM in the same modes: answers under way are let go, and arrive whole without epp."""
    async with make_rig("--transport=fast", "--drain-timeout=0s", responses=Responses.FULL_DUPLEX) as rig:
        streaming = [await rig.start_stream() for _ in range(4)]
        assert await rig.picker.signal(signal.SIGTERM) == 0
        await rig.allow(EVENTS)
        assert [ModelServer.event(0) + await answer.content.read() for answer in streaming] == [ANSWER] * 4


async def test_endpoints_that_envoy_knows(tmp_path: Path) -> None:
    """override_host: the endpoint that was picked serves, found by the metadata epp sets."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(ModelServer(f"pod-{n}")) for n in range(4)]
        endpoints, eds = tmp_path / "endpoints.json", tmp_path / "eds.json"
        write_endpoints(endpoints, [server.host_port for server in servers])
        eds.write_text(json.dumps({"version_info": "1", "resources": [_assignment(servers)]}))
        picker = await stack.enter_async_context(PickerProcess([f"--config-text={config(endpoints)}", "--transport=fast"]))
        pickers = bootstrap.Pickers((("127.0.0.1", picker.grpc_port),))
        front = bootstrap.front(listener=0, admin=0, pickers=pickers, upstream=bootstrap.override_host(str(eds)))
        envoy = await stack.enter_async_context(EnvoyProcess(front))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        for _ in range(20):
            async with client.post(f"http://127.0.0.1:{envoy.port}{COMPLETIONS}", data=BODY) as answer:
                seen = await answer.json()
            assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]
        assert all(server.requests for server in servers)


def _assignment(servers: list[ModelServer]) -> dict[str, object]:
    endpoints = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server.port}}}} for server in servers]
    return {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": bootstrap.ENDPOINTS_CLUSTER,
        "endpoints": [{"lb_endpoints": endpoints}],
    }
