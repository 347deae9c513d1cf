"""A server on loopback with a scripted director, and a client that plays Envoy."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import grpc
import grpc.aio
import pytest

from epp import names
from epp._proto import ext_proc_pb2 as pb
from epp.domain import DecisionId, InferenceRequest, RequestEnd, StreamClosed
from epp.errors import RequestError
from epp.extproc.events import Route
from epp.reporter import Reporter
from epp.server.certificates import Certificates
from epp.server.fast import FastServer
from epp.server.grpc_aio import GrpcServer
from epp.server.limits import Limits
from epp.server.service import Service
from epp.testing.waiting import eventually

TRANSPORTS = ("fast", "grpc")

# For what grpc leaves to itself.
FAST_ONLY = pytest.mark.parametrize("rig", ["fast"], indirect=True)
MAX_MESSAGE = 4 << 20

Script = Callable[[Mapping[str, str], Sequence[str] | None, bytes | None], Awaitable[Route]]


class ScriptedDirector:
    """Answers picks with `script` and writes down what it is told."""

    def __init__(self) -> None:
        self.script: Script = self.route
        self.picking = 0
        self.ends: list[RequestEnd] = []
        self.unmatched_reasons: list[str] = []
        self.closed: list[tuple[str, bool, bool]] = []
        self.logged: list[bool] = []
        self.poison: str | None = None

    async def route(self, headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        """The default: one endpoint; the header x-case names the decision."""
        return Route("10.0.0.1:8000", DecisionId(headers.get("x-case", "d-1")))

    async def pick(
        self,
        headers: Mapping[str, str],
        subset: Sequence[str] | None,
        body: bytes | None,
        *,
        body_follows: bool = False,
        attributes: bytes | None = None,
    ) -> Route:
        self.picking += 1
        try:
            return await self.script(headers, subset, body)
        finally:
            self.picking -= 1

    def ended(self, end: RequestEnd) -> None:
        if end.decision_id == self.poison:
            raise KeyError(end.decision_id)
        self.ends.append(end)

    def unmatched(self, reason: str) -> None:
        self.unmatched_reasons.append(reason)

    def stream_closed(self, decision_id: DecisionId, closed: StreamClosed) -> None:
        self.closed.append((decision_id, closed.response_seen, closed.response_complete))
        self.logged.append(closed.logged)


class Notes(Reporter):
    """Writes down the hooks the server calls."""

    def __init__(self) -> None:
        self.opened = 0
        self.codes: list[str] = []
        self.rejections: list[tuple[InferenceRequest | None, RequestError]] = []

    def stream_opened(self) -> None:
        self.opened += 1

    def stream_closed(self, grpc_code: str, seconds: float) -> None:
        self.codes.append(grpc_code)

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        self.rejections.append((request, error))


class KnownServices:
    """Serves the services it lists."""

    services: Mapping[str, bool] = {"": True, "liveness": False}

    def serving(self, service: str) -> bool | None:
        return self.services.get(service)


class Rig:
    """The server under test, what it talks to, and a channel to it."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.director = ScriptedDirector()
        self.notes = Notes()
        self.service = Service(self.director, KnownServices(), self.notes, max_body=11_000_000, now=time.monotonic)
        self.server = self.new_server(0, 0)
        self.channel: grpc.aio.Channel

    def new_server(
        self,
        port: int,
        health_port: int | None,
        *,
        limits: Limits | None = None,
        host: str = "127.0.0.1",
        tls: Certificates | None = None,
    ) -> FastServer | GrpcServer:
        """One more of the same kind, for the same service."""
        if self.transport == "fast":
            context = tls.context if tls else None
            return FastServer(
                self.service,
                host=host,
                port=port,
                health_port=health_port,
                max_recv_message_bytes=MAX_MESSAGE,
                tls=context,
                limits=limits,
            )
        credentials = tls.grpc_credentials() if tls else None
        return GrpcServer(
            self.service,
            host=host,
            port=port,
            health_port=health_port,
            max_recv_message_bytes=MAX_MESSAGE,
            tls=credentials,
            limits=limits,
        )

    def open(self) -> "EnvoyStream":
        """A new ext_proc stream."""
        return EnvoyStream(self.channel.stream_stream(f"/{names.EXT_PROC_SERVICE}/Process")())

    async def settled(self, streams: int) -> None:
        """Wait until the server is through with this many ext_proc streams."""
        await eventually(lambda: len(self.notes.codes) == streams)


class EnvoyStream:
    """One ext_proc stream from Envoy's side."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call

    async def send(self, *messages: pb.ProcessingRequest) -> None:
        for message in messages:
            await self.call.write(message.SerializeToString())

    async def receive(self, count: int) -> list[pb.ProcessingResponse]:
        """The next messages; fewer where the stream ends."""
        messages: list[pb.ProcessingResponse] = []
        while len(messages) < count:
            try:
                data = await self.call.read()
            except grpc.aio.AioRpcError:
                break
            if data is grpc.aio.EOF:
                break
            messages.append(pb.ProcessingResponse.FromString(data))
        return messages

    async def finish(self) -> list[pb.ProcessingResponse]:
        """Half-close; everything the server still sends."""
        await self.call.done_writing()
        return await self.receive(1 << 30)

    async def status(self) -> tuple[str, str]:
        """Name and details of the status the stream ended with."""
        return (await self.call.code()).name, await self.call.details()
