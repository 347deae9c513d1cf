"""Model servers of a soak: they check what arrives, do what the request's header says, and die where it says so.

In the client's process, so that what was sent and what arrived meet without a detour. Used on one event loop.
"""

import asyncio
import re
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, cast

from tests.soak.http1 import Reader, hang_up
from tests.soak.plan import STREAMED, Kind, event, json_answer

_SOAK: Final = re.compile(rb"\r\nx-soak: (\d+) (\w+) ([\d.]+) (\d+) ([\d.]+) (\d+) ([01])\r\n")


class ModelServers:
    """`async with ModelServers(count, arrived) as servers: ... servers.ports`."""

    def __init__(self, count: int, arrived: Callable[[int], None]) -> None:
        """`arrived` is called with the number of each request whose body is here whole."""
        self._count = count
        self._arrived = arrived
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._servers = [await loop.create_server(lambda: _Connection(self._arrived), "127.0.0.1", 0) for _ in range(self._count)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in self._servers:
            server.close()

    @property
    def ports(self) -> list[int]:
        """Of 127.0.0.1."""
        return [int(server.sockets[0].getsockname()[1]) for server in self._servers]


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self, arrived: Callable[[int], None]) -> None:
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if not self._reader.complete:
            return
        reader, self._reader = self._reader, Reader()
        assert reader.head is not None
        said = _SOAK.search(reader.head)
        assert said is not None, f"not of this soak: {reader.head!r}"
        number, kind, wait_s = int(said[1]), Kind[said[2].decode()], float(said[3])
        self._arrived(number)
        crc = zlib.crc32(reader.body)
        events, pace_s, text, reset = int(said[4]), float(said[5]), int(said[6]), said[7] == b"1"
        self._later(wait_s, lambda: self._answer(number, kind, crc, events, pace_s, text, reset=reset))

    def _answer(self, number: int, kind: Kind, crc: int, events: int, pace_s: float, text: int, *, reset: bool) -> None:
        if kind is Kind.REFUSED:
            self._hang_up(reset=reset)
        elif kind in STREAMED:
            self._write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            self._next(number, crc, 0, events, pace_s, dies=kind is Kind.CUT)
        else:
            status = b"500 Internal Server Error" if kind is Kind.ERROR else b"200 OK"
            body = json_answer(number, crc, text)
            self._write(b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    def _next(self, number: int, crc: int, index: int, events: int, pace_s: float, *, dies: bool) -> None:
        if self._transport is None:  # the client left
            return
        if index < events:
            data = event(number, crc, index)
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
            self._later(pace_s, lambda: self._next(number, crc, index + 1, events, pace_s, dies=dies))
        elif dies:
            self._hang_up(reset=False)  # a reset could overtake the headers
        else:
            self._write(b"0\r\n\r\n")

    def _later(self, delay_s: float, then: Callable[[], None]) -> None:
        if delay_s > 0.0:
            self._loop.call_later(delay_s, then)
        else:
            then()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _hang_up(self, *, reset: bool) -> None:
        if self._transport is not None:
            hang_up(self._transport, reset=reset)
