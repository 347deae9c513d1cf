"""HTTP/2 cheaply: clients that share connections, over libnghttp2. Who leaves resets one stream, or drops a whole connection.

Used on one event loop.
"""

import asyncio
from typing import cast

import ngh2

from tests.soak.exchange import Exchange
from tests.soak.http1 import headers
from tests.soak.plan import Kind, Plan


class Client:
    """Some connections, shared by everybody."""

    def __init__(self, port: int, connections: int) -> None:
        """`port` of 127.0.0.1."""
        self._port = port
        self._connections: list[_Connection | None] = [None] * connections
        self._locks = [asyncio.Lock() for _ in range(connections)]

    async def begin(self, plan: Plan) -> Exchange:
        """Send the headers, on the connection that is its turn."""
        i = plan.number % len(self._connections)
        async with self._locks[i]:
            connection = self._connections[i]
            if connection is None or connection.closed:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
                self._connections[i] = connection
        return connection.begin(plan)

    def close(self) -> None:
        """Leave."""
        for connection in self._connections:
            if connection is not None:
                connection.drop()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Http2Exchange] = {}
        self._dropped = False
        self.closed = False
        """To new streams."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: 1 << 20})
        # Envoy resets a stream it has answered early; where the connection's window is full then, the answer's body is lost (1.40).
        self._h2.set_local_window_size(16 << 20)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed, self._transport = True, None
        for exchange in self._streams.values():
            exchange.left = self._dropped
            exchange.broken = f"connection closed: {exc}"
            exchange.ends()
        self._streams.clear()

    def data_received(self, data: bytes) -> None:
        self._h2.receive_data(data)
        for event in self._h2.events():
            self._on(event)
        self.flush()

    def begin(self, plan: Plan) -> Exchange:
        fields = {":method": "POST", ":scheme": "http", ":path": plan.body.path, ":authority": "soak"} | headers(plan)
        stream_id = self._h2.send_request([(name.encode(), value.encode()) for name, value in fields.items()])
        exchange = self._streams[stream_id] = _Http2Exchange(self, stream_id, drops=plan.kind is Kind.CONNECTION)
        self.flush()
        return exchange

    def send(self, stream_id: int, data: bytes | memoryview, *, end: bool) -> None:
        if stream_id in self._streams:
            self._h2.send_data(stream_id, data, end_stream=end)
            self.flush()

    def reset(self, stream_id: int) -> None:
        if (exchange := self._streams.pop(stream_id, None)) is not None:
            self._h2.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
            self.flush()
            exchange.ends()

    def drop(self) -> None:
        """All its streams at once."""
        self._dropped = self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def flush(self) -> None:
        if self._transport is not None and not self._dropped and (data := self._h2.data_to_send()):
            self._transport.write(data)

    def _on(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.GoAwayReceived):
            self.closed = True
            return
        exchange = self._streams.get(getattr(event, "stream_id", 0))
        if exchange is None:  # of the connection, or left
            return
        match event:
            case ngh2.ResponseReceived(headers=fields):
                exchange.begins(int(dict(fields)[b":status"]))
                exchange.complete = event.end_stream
            case ngh2.DataReceived(data=data):
                exchange.body += data
                exchange.complete = event.end_stream
            case ngh2.StreamClosed(stream_id=stream_id, error_code=code):
                del self._streams[stream_id]
                exchange.broken = f"stream closed, code {code}"
                exchange.ends()


class _Http2Exchange(Exchange):
    def __init__(self, connection: _Connection, stream_id: int, *, drops: bool) -> None:
        super().__init__()
        self._connection = connection
        self._stream_id = stream_id
        self._drops = drops

    def send(self, data: bytes | memoryview, *, end: bool) -> None:
        self._connection.send(self._stream_id, data, end=end)

    def leave(self, *, reset: bool) -> None:
        self.left = True
        if self._drops:
            self._connection.drop()
        else:
            self._connection.reset(self._stream_id)
