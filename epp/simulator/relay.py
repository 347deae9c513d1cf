"""A TCP port in front of another one, whose bytes can be made to stand still: a host that hangs, as far as loopback allows.

libzmq answers pings from a thread of its own, so a socket that stays open without a sign of life needs something between it
and its peer. While the gate is shut connections are accepted, as the kernel of a hung process does, none is closed, and nothing
passes; when it opens, everything does. Used by `process` in dev mode, on the event loop.
"""

import asyncio
import contextlib
import socket

_CHUNK_BYTES = 64 << 10


class Relay:
    """One listening socket and the connections that came over it."""

    def __init__(self, listening: socket.socket, host: str, port: int, gate: asyncio.Event) -> None:
        """Takes over the socket; everything is passed on to host and port, while the gate is open."""
        self._listening = listening
        self._inner = host, port
        self._gate = gate
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        self._server = await asyncio.start_server(connected, sock=self._listening)

    async def close(self) -> None:
        """Close every connection; the port is free when this returns."""
        if self._server is not None:
            self._server.close()
        self._listening.close()
        connections = self.cut()
        await asyncio.gather(*connections, return_exceptions=True)

    def cut(self) -> list[asyncio.Task[None]]:
        """Break every connection there is; new ones are welcome. Returns what ends with that."""
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        return connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side closes."""
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):  # a side that is gone is an end like any other
            inner_reader, inner_writer = await asyncio.open_connection(*self._inner)
            with contextlib.closing(inner_writer):
                ways = [asyncio.ensure_future(self._pass(reader, inner_writer)), asyncio.ensure_future(self._pass(inner_reader, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._gate.wait()
                writer.write(data)
                await writer.drain()
        # An end is news too.
        await self._gate.wait()
