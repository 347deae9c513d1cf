"""The parts of a rig and how it is configured; the fixtures that hand one out are in conftest.py."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from epp.testing import bootstrap
from epp.testing.envoy import EnvoyProcess
from epp.testing.model_server import STREAM, ModelServer
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually

COMPLETIONS = "/v1/completions"
BODY = json.dumps({"model": "m", "prompt": "p", "stream": True}).encode()
EVENTS = 20
ANSWER = b"".join(map(ModelServer.event, range(EVENTS)))


@dataclass(slots=True)
class Rig:
    """One Envoy with one picker in front of model servers."""

    envoy: EnvoyProcess
    picker: PickerProcess
    servers: Sequence[ModelServer]
    client: aiohttp.ClientSession
    endpoints_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.envoy.port}"

    @property
    def arrived(self) -> int:
        """Requests that reached a model server whole."""
        return sum(server.requests for server in self.servers)

    async def in_flight(self, requests: int) -> None:
        """Wait until the picker believes that this many are in flight."""

        async def reached() -> bool:
            samples = (await self.picker.metrics()).items()
            return sum(value for name, value in samples if name.startswith("llm_d_epp_request_running")) == requests

        await eventually(reached)

    async def allow(self, events: float) -> None:
        """Every streamed answer may be this many events long by now."""
        for server in self.servers:
            await server.allow(events)

    async def start_stream(self) -> aiohttp.ClientResponse:
        """A streamed answer of EVENTS events; the first has arrived."""
        answer = await self.client.post(self.url + COMPLETIONS, data=BODY, headers={STREAM: str(EVENTS)})
        assert answer.status == 200
        assert await answer.content.readexactly(len(ModelServer.event(0))) == ModelServer.event(0)
        return answer

    async def settle(self) -> None:
        """End every answer and forget what happened."""
        await self.allow(EVENTS)
        await self.in_flight(0)
        await self.allow(1)
        for server in self.servers:
            server.requests = 0


MakeRig = Callable[..., AbstractAsyncContextManager[Rig]]


@contextlib.asynccontextmanager
async def build_rig(
    folder: Path,
    *flags: str,
    servers: int = 2,
    responses: bootstrap.Responses = bootstrap.Responses.ACCESS_LOG,
    request_body: str = "FULL_DUPLEX_STREAMED",
    tls: bool = False,
    extra: Sequence[str] = (),
) -> AsyncIterator[Rig]:
    """`flags` go to epp; `extra` are "ip:port" of endpoints beside the servers, `folder` holds the endpoints file.

    `request_body` and `responses` are how the filter is configured, `tls` is between Envoy and epp.
    """
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(ModelServer(f"pod-{i}")) for i in range(servers)]
        file = folder / "endpoints.json"
        write_endpoints(file, [*(server.host_port for server in running), *extra])
        picker = await stack.enter_async_context(
            PickerProcess([f"--config-text={config(file)}", f"--secure-serving={str(tls).lower()}", *flags])
        )
        front = bootstrap.standalone(
            listener=0, admin=0, epp=picker.grpc_port, responses=responses, request_body=request_body, tls=tls, keep_request_id=True
        )
        envoy = await stack.enter_async_context(EnvoyProcess(front))
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        yield Rig(envoy, picker, running, client, file)


def write_endpoints(file: Path, addresses: Sequence[str]) -> None:
    """An endpoints file with these "ip:port"."""
    pairs = [address.rsplit(":", 1) for address in addresses]
    file.write_text(json.dumps({"endpoints": [{"name": f"pod-{i}", "address": ip, "port": port} for i, (ip, port) in enumerate(pairs)]}))


def config(endpoints: Path) -> str:
    """Least in-flight requests first, ties at random."""
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": [
                {"type": "file-discovery", "parameters": {"path": str(endpoints), "watchFile": True}},
                {"type": "active-request-scorer"},
            ],
            "dataLayer": {"injectDefaults": False, "discovery": {"pluginRef": "file-discovery"}},
            "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "active-request-scorer"}]}],
        }
    )
