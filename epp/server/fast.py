"""The fast transport: gRPC over asyncio streams and libnghttp2, at less than half of grpc.aio's CPU (`make bench`).

Owns the ports, connections and tasks; decides nothing. `fast_connection` speaks HTTP/2, `service` knows the methods.
Everything runs on one event loop; `start` and `stop` are for the composition root.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping
from functools import partial

from epp.server import ports
from epp.server.fast_connection import Connection, Shared
from epp.server.limits import Limits
from epp.server.service import Handler, Service

logger = logging.getLogger(__name__)

# Peers that do not read their last frames are not waited for longer.
LAST_WORDS_S = 0.5


class FastServer:
    """Serves on one port, and health in plaintext on a second one if asked to."""

    def __init__(
        self,
        service: Service,
        *,
        host: str,
        port: int,
        health_port: int | None,
        max_recv_message_bytes: int,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Port 0 takes a free one; after `start`, `port` and `health_port` are the bound ones. `tls` must offer h2 by ALPN."""
        self._service = service
        self._host = host
        self.port = port
        self.health_port = health_port
        self._max_recv_message_bytes = max_recv_message_bytes
        self._tls = tls
        self._limits = limits or Limits()
        self._listeners: list[asyncio.Server] = []
        self._shared: list[Shared] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Listen and serve. Raises ConfigError where a port cannot be had; then nothing listens."""
        try:
            self.port = await self._listen(self._service.methods, self.port, "--grpc-port", self._tls)
            if self.health_port is not None:
                self.health_port = await self._listen(self._service.health_methods, self.health_port, "--grpc-health-port", None)
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let the open ones end for at most `grace_s` seconds (answers end with OK at once), then end them."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for shared in self._shared:
            shared.draining = True
        self._service.finish_answers()
        for connection in self._connections():
            connection.drain()
        await self._ended(grace_s)
        for connection in self._connections():
            connection.interrupt_calls()
        await self._ended(LAST_WORDS_S)
        for connection in self._connections():
            connection.abort()
        await self._ended(None)

    async def _listen(self, methods: Mapping[str, Handler], port: int, flag: str, tls: ssl.SSLContext | None) -> int:
        exchanges = self._service.exchanges
        shared = Shared(
            {path.encode(): handler for path, handler in methods.items() if path not in exchanges},
            {path.encode(): exchanges[path] for path in methods if path in exchanges},
            self._limits,
            self._max_recv_message_bytes,
            self._service.repeats,
            changed=self._changed.set,
        )
        listening = ports.listen(self._host, port, flag)
        accept = partial(_accept_tls if tls else Connection, shared)
        self._listeners.append(await asyncio.get_running_loop().create_server(accept, sock=listening, ssl=tls))
        self._shared.append(shared)
        bound: int = listening.getsockname()[1]
        return bound

    def _connections(self) -> list[Connection]:
        return [connection for shared in self._shared for connection in shared.connections]

    async def _ended(self, timeout_s: float | None) -> None:
        """Wait until no connection and no call is left; at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(shared.connections or shared.tasks for shared in self._shared):
                    self._changed.clear()
                    await self._changed.wait()


def _accept_tls(shared: Shared) -> Connection:
    """A connection whose handshake is still to come. Where none does, asyncio drops it without a word to anybody."""
    connection = Connection(shared)
    # The timer holds `shared` alone: what never became a connection may go at once.
    connection.impatience = asyncio.get_running_loop().call_later(shared.limits.handshake_s, _no_handshake, shared)
    return connection


def _no_handshake(shared: Shared) -> None:
    problem = (
        "a connection completed no TLS handshake: a TCP probe; a peer that speaks plaintext (give its cluster in Envoy a transport_socket, "
        "or epp --secure-serving=false); or one that does not accept our certificate or TLS version (see that transport_socket's validation)"
    )
    logger.log(shared.repeats.level(problem), problem)
