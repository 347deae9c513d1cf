"""The conservative transport: the service on a grpc.aio server.

Owns the ports and one task per call (grpc makes them); decides nothing. Handlers are generic and exchange bytes, so that
protobuf stays in the codecs; every method is registered as a stream of messages each way, which on the wire is the same.
Everything runs on one event loop; `start` and `stop` are for the composition root.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import NoReturn, Protocol
from urllib.parse import unquote

import grpc
import grpc.aio

from epp.server import ports
from epp.server.conversation import StreamGoneError
from epp.server.limits import Limits
from epp.server.service import Handler, Service
from epp.server.status import GIVEN_UP, Ending, Status


class _Context(Protocol):
    """What is used of grpc.aio.ServicerContext."""

    def read(self) -> Coroutine[object, None, object]: ...
    async def write(self, message: bytes) -> None: ...
    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn: ...
    def peer(self) -> str: ...
    def time_remaining(self) -> float | None: ...


class _Details(Protocol):
    """What is used of grpc.HandlerCallDetails."""

    method: str


class GrpcServer:
    """Serves on one port, and health in plaintext on a second one if asked to."""

    def __init__(
        self,
        service: Service,
        *,
        host: str,
        port: int,
        health_port: int | None,
        max_recv_message_bytes: int,
        tls: grpc.ServerCredentials | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Port 0 takes a free one; after `start`, `port` and `health_port` are the bound ones. Of `limits` it takes what grpc has."""
        self._service = service
        self._host = host
        self.port = port
        self.health_port = health_port
        self._max_recv_message_bytes = max_recv_message_bytes
        self._tls = tls
        self._limits = limits or Limits()
        self._servers: list[grpc.aio.Server] = []

    async def start(self) -> None:
        """Listen and serve. Raises ConfigError where a port cannot be had; then nothing listens."""
        try:
            self.port = self._listen(self._service.methods, self.port, "--grpc-port", self._tls)
            if self.health_port is not None:
                self.health_port = self._listen(self._service.health_methods, self.health_port, "--grpc-health-port", None)
            for server in self._servers:
                await server.start()
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let the open ones end for at most `grace_s` seconds (answers end with OK at once), then end them.

        grpc refuses calls that were under way when its GOAWAY went out; the data plane sees UNAVAILABLE.
        """
        servers, self._servers = self._servers, []
        stopping = [asyncio.create_task(server.stop(grace_s)) for server in servers]
        self._service.finish_answers()
        await asyncio.gather(*stopping)

    def _listen(self, methods: Mapping[str, Handler], port: int, flag: str, tls: grpc.ServerCredentials | None) -> int:
        """Add a server; the bound port. grpc tells no reason when it fails, so the port is tried first in a way that does."""
        server = grpc.aio.server(options=_options(self._limits, self._max_recv_message_bytes))
        server.add_generic_rpc_handlers((_Router(methods),))
        self._servers.append(server)
        address = ports.authority(self._host, port)
        ports.listen(self._host, port, flag).close()
        try:
            bound: int = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
        except RuntimeError as error:
            raise ports.unavailable(self._host, port, flag, "the port is taken") from error
        return bound


class _Router(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the handler of a path; grpc answers UNIMPLEMENTED where there is none."""

    def __init__(self, methods: Mapping[str, Handler]) -> None:
        self._handlers = {path: grpc.stream_stream_rpc_method_handler(partial(_serve, handler)) for path, handler in methods.items()}

    def service(self, handler_call_details: _Details) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(handler_call_details.method)


async def _serve(handler: Handler, _requests: object, context: _Context) -> None:
    ending = await handler(_Call(context))
    # A peer that left is told nothing.
    if ending.status not in (Status.OK, Status.CANCELLED):
        await context.abort(_CODES[ending.status], ending.details)


_CODES = {status: grpc.StatusCode[status.name] for status in Status}


class _Call:
    """One call as the service sees it."""

    __slots__ = ("_context",)

    def __init__(self, context: _Context) -> None:
        self._context = context

    @property
    def host(self) -> str:
        """grpc writes "ipv4:10.0.0.1:5000" and "ipv6:%5Bfd00::1%5D:5000"."""
        family, _, address = unquote(self._context.peer()).partition(":")
        return address.rpartition(":")[0].strip("[]").removeprefix("::ffff:") if family in ("ipv4", "ipv6") else ""

    @property
    def interruption(self) -> Ending:
        remaining = self._context.time_remaining()
        return GIVEN_UP if remaining is None or remaining > 0 else Ending(Status.DEADLINE_EXCEEDED)

    async def read(self) -> bytes | None:
        # The task that grpc cancels with the call must not be the one in its read: each such read leaks 96 bytes (grpc/grpc#43360).
        reading = asyncio.ensure_future(self._context.read())
        try:
            message = await asyncio.shield(reading)
        except asyncio.CancelledError:
            reading.add_done_callback(_forget)
            raise
        except grpc.aio.BaseError as error:
            raise StreamGoneError(str(error)) from error
        return message if isinstance(message, bytes) else None  # grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            raise StreamGoneError(str(error)) from error


def _forget(reading: asyncio.Future[object]) -> None:
    """Nobody waits for this read any more: that its call is over by now is no news."""
    if not reading.cancelled():
        reading.exception()


_UNLIMITED = (1 << 31) - 1


def _options(limits: Limits, max_recv_message_bytes: int) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", max_recv_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Without this a second epp would silently share the port with the first.
        ("grpc.so_reuseport", 0),
        # Data planes ping as often as they are configured to; grpc's default drops a connection with more than one idle ping in 5 minutes.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", round(limits.keepalive_interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(limits.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", round(limits.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Calls that wait for a turn of the loop: grpc cancels some beyond 1,000 unless told otherwise.
        ("grpc.server.max_pending_requests", _UNLIMITED),
        ("grpc.server.max_pending_requests_hard_limit", _UNLIMITED),
        ("grpc.max_metadata_size", limits.header_list),
        ("grpc.absolute_max_metadata_size", limits.header_list),
        # A bit each for identity and gzip.
        ("grpc.compression_enabled_algorithms_bitset", 0b101),
    )
