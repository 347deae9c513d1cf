"""A real Envoy, a real epp and stand-in model servers, put together the way a user would."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from epp.testing import bootstrap
from epp.testing.envoy import EnvoyProcess
from epp.testing.model_server import ModelServer
from epp.testing.picker import PickerProcess
from tests.envoy.rig import MakeRig, Rig, config, write_endpoints


@pytest.fixture
def make_rig(tmp_path: Path) -> MakeRig:
    @contextlib.asynccontextmanager
    async def make(
        *flags: str, servers: int = 2, responses: bootstrap.Responses = bootstrap.Responses.ACCESS_LOG, extra: Sequence[str] = ()
    ) -> AsyncIterator[Rig]:
        async with contextlib.AsyncExitStack() as stack:
            running = [await stack.enter_async_context(ModelServer(f"pod-{i}")) for i in range(servers)]
            file = tmp_path / "endpoints.json"
            write_endpoints(file, [*(server.host_port for server in running), *extra])
            picker = await stack.enter_async_context(PickerProcess([f"--config-text={config(file)}", *flags]))
            envoy = await stack.enter_async_context(
                EnvoyProcess(bootstrap.standalone(listener=0, admin=0, epp=picker.grpc_port, responses=responses, keep_request_id=True))
            )
            client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            yield Rig(envoy, picker, running, client, file)

    return make


@pytest.fixture
async def rig(make_rig: MakeRig) -> AsyncIterator[Rig]:
    async with make_rig() as made:
        yield made
