"""The conservative transport: a grpc.aio server for ext_proc, Envoy's access log and health.

Owns the ports and one task per stream (grpc makes them); decides nothing. Handlers are generic and exchange bytes, so
that protobuf stays in the codecs. Everything runs on one event loop; `start` and `stop` are for the composition root.

How a stream ends (gRPC status): OK when the peer has no more to say or was sent an immediate response; INVALID_ARGUMENT
when it broke the protocol; INTERNAL on a bug of ours, logged with the number of the stream; and nothing is sent to a
peer that left.
"""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Awaitable
from functools import partial
from typing import NoReturn, Protocol

import grpc
import grpc.aio

from epp import names
from epp.errors import ConfigError, ProtocolError
from epp.extproc import access_log
from epp.reporter import Reporter
from epp.server import health as health_service
from epp.server.conversation import StreamGoneError, converse
from epp.server.interfaces import Health, RequestDirector

logger = logging.getLogger(__name__)


class _Context(Protocol):
    """What is used of grpc.aio.ServicerContext."""

    async def read(self) -> object: ...
    async def write(self, message: bytes) -> None: ...
    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn: ...


class GrpcServer:
    """Serves on one port, and health on a second one if asked to."""

    def __init__(
        self,
        director: RequestDirector,
        health: Health,
        reporter: Reporter,
        *,
        host: str,
        port: int,
        health_port: int | None,
        max_body: int,
        max_recv_message_bytes: int,
    ) -> None:
        """Port 0 takes a free one; after `start`, `port` and `health_port` are the bound ones. Sizes are in bytes."""
        self._director = director
        self._health = health
        self._reporter = reporter
        self._host = host
        self.port = port
        self.health_port = health_port
        self._max_body = max_body
        self._max_recv_message_bytes = max_recv_message_bytes
        self._servers: list[grpc.aio.Server] = []
        self._stream_numbers = itertools.count(1)
        self._last_warning = ""
        self.access_loggers = 0
        """Access-log streams that are open now."""

    async def start(self) -> None:
        """Listen and serve. Raises ConfigError where a port cannot be had; then nothing listens."""
        main = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", self._max_recv_message_bytes),
                ("grpc.max_send_message_length", -1),
                *_SERVER_OPTIONS,
            )
        )
        main.add_generic_rpc_handlers((*self._data_plane_handlers(), self._health_handler()))
        self._servers = [main]
        try:
            self.port = _bind(main, self._host, self.port, "--grpc-port")
            if self.health_port is not None:
                probes = grpc.aio.server(options=_SERVER_OPTIONS)
                probes.add_generic_rpc_handlers((self._health_handler(),))
                self._servers.append(probes)
                self.health_port = _bind(probes, self._host, self.health_port, "--grpc-health-port")
            for server in self._servers:
                await server.start()
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, grace_s: float) -> None:
        """Take no new streams at once, end the open ones after `grace_s` seconds at the latest."""
        servers, self._servers = self._servers, []
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    def _data_plane_handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        return (
            grpc.method_handlers_generic_handler(names.EXT_PROC_SERVICE, {"Process": grpc.stream_stream_rpc_method_handler(self._process)}),
            grpc.method_handlers_generic_handler(
                names.ACCESS_LOG_SERVICE, {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._stream_access_logs)}
            ),
        )

    def _health_handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            health_service.SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check),
                "List": grpc.unary_unary_rpc_method_handler(self._list),
            },
        )

    # --- handlers: grpc passes an iterator or a request, and the context --------------------------------------

    async def _process(self, _requests: object, context: _Context) -> None:
        """ExternalProcessor/Process."""
        loop = asyncio.get_running_loop()
        started, code, details = loop.time(), grpc.StatusCode.CANCELLED, ""
        self._reporter.stream_opened()
        try:
            code, details = await self._outcome(
                "ext_proc",
                converse(
                    partial(_read, context),
                    partial(_write, context),
                    director=self._director,
                    reporter=self._reporter,
                    max_body=self._max_body,
                ),
            )
        finally:
            self._reporter.stream_closed(code.name, loop.time() - started)
        if code in _TOLD:
            await context.abort(code, details)

    async def _stream_access_logs(self, _requests: object, context: _Context) -> bytes:
        """AccessLogService/StreamAccessLogs; a StreamAccessLogsResponse is an empty message."""
        self.access_loggers += 1
        try:
            code, details = await self._outcome("access log", self._take_access_log(context))
        finally:
            self.access_loggers -= 1
        if code in _TOLD:
            await context.abort(code, details)
        return b""

    async def _check(self, request: bytes, context: _Context) -> bytes:
        """Health/Check."""
        try:
            return health_service.check(self._health, request)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _list(self, _request: bytes, _context: _Context) -> bytes:
        """Health/List."""
        return health_service.list_services(self._health)

    # --- steps ----------------------------------------------------------------------------------------------

    async def _outcome(self, kind: str, work: Awaitable[None]) -> tuple[grpc.StatusCode, str]:
        """Serve a stream; the status it ends with, and for the peer's log why. A cancellation passes through."""
        number = next(self._stream_numbers)
        try:
            await work
        except StreamGoneError:
            return grpc.StatusCode.CANCELLED, ""
        except ProtocolError as error:
            # A filter configured wrongly repeats its error with every request: say it once.
            logger.log(
                logging.DEBUG if str(error) == self._last_warning else logging.WARNING, "%s stream %d ended: %s", kind, number, error
            )
            self._last_warning = str(error)
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception:
            logger.exception("%s stream %d failed: this is a bug in epp", kind, number)
            return grpc.StatusCode.INTERNAL, f"a bug in epp, see its log: {kind} stream {number} failed"
        return grpc.StatusCode.OK, ""

    async def _take_access_log(self, context: _Context) -> None:
        while (data := await _read(context)) is not None:
            batch = access_log.decode(data)
            for end in batch.ends:
                try:
                    self._director.ended(end)
                except Exception:  # the other ends of this batch must not be lost with this one
                    logger.exception("the end of decision %s could not be booked: this is a bug in epp", end.decision_id)
            for _ in range(batch.unmatched):
                self._director.unmatched("no_decision")


# Of these endings the peer is told; a peer that left is not.
_TOLD = frozenset((grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL))

_SERVER_OPTIONS = (
    # Without this a second epp would silently share the port with the first.
    ("grpc.so_reuseport", 0),
    # Data planes ping as often as they are configured to; grpc's default drops a connection with more than one idle ping in 5 minutes.
    ("grpc.http2.max_ping_strikes", 0),
)


async def _read(context: _Context) -> bytes | None:
    try:
        message = await context.read()
    except grpc.aio.BaseError as error:
        raise StreamGoneError(str(error)) from error
    return message if isinstance(message, bytes) else None  # grpc.aio.EOF


async def _write(context: _Context, message: bytes) -> None:
    try:
        await context.write(message)
    except grpc.aio.BaseError as error:
        raise StreamGoneError(str(error)) from error


def _bind(server: grpc.aio.Server, host: str, port: int, flag: str) -> int:
    """Listen; returns the bound port. grpc tells no reason when it fails, so the port is tried first in a way that does."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        bound: int = server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "the port is taken"
        raise ConfigError(f"{flag}={port}: cannot listen on {address} ({reason}): free the port or choose another one") from error
    return bound
