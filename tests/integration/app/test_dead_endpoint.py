"""An endpoint that the file lists and nobody listens on: the picker finds out by itself, before a request does."""

import json
from pathlib import Path

import pytest
from aiohttp import web

from epp.testing.picker import PickerProcess, free_ports
from epp.testing.waiting import eventually
from tests.integration.app.rig import REST, config, half_a_request, routed
from tests.integration.server.h2_peer import connect

PAGE = "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 0\n"
READY = 'llm_d_epp_ready_endpoints{name="epp"}'


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """Endpoints at two free ports."""
    path = tmp_path / "endpoints.json"
    listed = [{"name": name, "address": "127.0.0.1", "port": str(port)} for name, port in zip("ab", free_ports(2), strict=True)]
    path.write_text(json.dumps({"endpoints": listed}))
    return path


async def test_requests_go_where_somebody_listens(file: Path) -> None:
    """One of two is dead: no request is sent there, the log says so once, and the gauge of ready endpoints; then it is back."""
    living, dead = (int(endpoint["port"]) for endpoint in json.loads(file.read_text())["endpoints"])
    servers = [await metrics_at(living)]
    try:
        scraping = json.loads(config(file))
        scraping["dataLayer"]["injectDefaults"] = True
        async with PickerProcess([f"--config-text={json.dumps(scraping)}"]) as picker:
            await eventually(
                lambda: "default/b takes no connections: it gets no requests until it does (endpoints left: 1)" in picker.log()
            )
            async with connect(picker.grpc_port) as peer:
                chosen = set()
                for _ in range(20):
                    stream = half_a_request(peer)
                    stream.send(REST, end=True)
                    chosen.add(await routed(stream))
            assert chosen == {f"127.0.0.1:{living}"}
            assert (await picker.metrics())[READY] == 1
            servers.append(await metrics_at(dead))
            await eventually(lambda: "default/b takes connections again (endpoints that do: 2)" in picker.log())
            assert (await picker.metrics())[READY] == 2
    finally:
        for server in servers:
            await server.cleanup()


async def metrics_at(port: int) -> web.AppRunner:
    """A model server, as far as its metrics go."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=PAGE)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    return runner
