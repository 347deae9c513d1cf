"""HTTP/1.1 cheaply: a reader of messages for both sides, and a client that leaves in the middle where it is told to.

Knows what Envoy writes: header names in lower case, content-length or chunks, no trailers. Used on one event loop.
"""

import asyncio
import re
import socket
import struct
from typing import Final, cast

from tests.soak.exchange import Exchange
from tests.soak.plan import Plan

_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Reader:
    """One message; what is fed to it after its end is an error of the peer."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._left: int | None = None
        """Of the body or the chunk under way; None: a chunk's length is next."""
        self._chunked = False
        self.head: bytes | None = None
        self.body = bytearray()
        self.complete = False

    def feed(self, data: bytes) -> None:
        """More of it. Raises ValueError where it is no HTTP."""
        if self.complete:
            raise ValueError(f"after the end of a message: {data[:100]!r}")
        self._pending += data
        if self.head is None and not self._take_head():
            return
        while not self.complete and (self._take_chunk() if self._chunked else self._take_rest()):
            pass

    def _take_head(self) -> bool:
        end = self._pending.find(b"\r\n\r\n")
        if end < 0:
            return False
        self.head = bytes(self._pending[: end + 4])
        del self._pending[: end + 4]
        length = _LENGTH.search(self.head)
        self._chunked = length is None
        self._left = int(length[1]) if length else None
        return True

    def _take_rest(self) -> bool:
        assert self._left is not None
        self.body += self._pending
        self._left -= len(self._pending)
        self._pending.clear()
        self.complete = self._left == 0
        return False

    def _take_chunk(self) -> bool:
        """One whole chunk with its CR LF; False: it is not here yet."""
        if self._left is None:
            end = self._pending.find(b"\r\n")
            if end < 0:
                return False
            self._left = int(self._pending[:end], 16)
            del self._pending[: end + 2]
        if len(self._pending) < self._left + 2:
            return False
        self.body += memoryview(self._pending)[: self._left]
        self.complete = self._left == 0
        del self._pending[: self._left + 2]
        self._left = None
        return True


def hang_up(transport: asyncio.Transport, *, reset: bool) -> None:
    """End a TCP connection: a reset, which may overtake what was written, or a close after it."""
    if reset:
        cast("socket.socket", transport.get_extra_info("socket")).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
    else:
        transport.close()


class Client:
    """One request after the other, over one connection as long as it holds."""

    def __init__(self, port: int) -> None:
        """`port` of 127.0.0.1."""
        self._port = port
        self._connection: _Connection | None = None

    async def begin(self, plan: Plan) -> Exchange:
        """Send the headers."""
        if self._connection is None or not self._connection.reusable:
            self.close()
            loop = asyncio.get_running_loop()
            _, self._connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        return self._connection.begin(plan)

    def close(self) -> None:
        """Leave."""
        if self._connection is not None:
            self._connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: _Http1Exchange | None = None
        self._reader = Reader()

    @property
    def reusable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and self._exchange is None

    def begin(self, plan: Plan) -> Exchange:
        assert self._transport is not None
        self._reader = Reader()
        self._exchange = _Http1Exchange(self, self._transport)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers(plan).items())
        self._transport.write(f"POST {plan.body.path} HTTP/1.1\r\nhost: soak\r\n{head}\r\n".encode())
        return self._exchange

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._exchange is not None:
            self._exchange.broken = f"connection closed: {exc}"
        self._end()

    def data_received(self, data: bytes) -> None:
        if self._exchange is None or self._transport is None or self._transport.is_closing():
            return
        self._reader.feed(data)
        head = self._reader.head
        if head is None:
            return
        self._exchange.begins(int(head[9:12]))
        if self._reader.complete:
            self._exchange.complete = True
            if b"\r\nconnection: close\r\n" in head or not self._exchange.sent:
                self._transport.close()
            self._end()

    def _end(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.body = self._reader.body
            exchange.ends()


class _Http1Exchange(Exchange):
    def __init__(self, connection: _Connection, transport: asyncio.Transport) -> None:
        super().__init__()
        self._connection = connection
        self._transport = transport
        self.sent = False
        """The request is whole."""

    def send(self, data: bytes | memoryview, *, end: bool) -> None:
        self.sent = end
        self._transport.write(data)

    def leave(self, *, reset: bool) -> None:
        self.left = True
        hang_up(self._transport, reset=reset)


def headers(plan: Plan) -> dict[str, str]:
    """Those of a request; the model server learns from them what to do."""
    return {
        "content-type": "application/json",
        "content-length": str(len(plan.body.data)),
        "x-soak": f"{plan.number} {plan.kind.name} {plan.wait_s:.4f} {plan.events} {plan.pace_s:.4f} {plan.text} {plan.reset:d}",
    }
