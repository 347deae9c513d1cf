"""A raw HTTP/2 client that can misbehave in ways no gRPC client does: it sends any bytes and takes only what it is told to.

`async with connect(port) as peer`; the events of its streams are gathered as they come, for tests to wait for.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import ngh2

from epp import names
from epp._proto import ext_proc_pb2 as pb
from epp.testing.waiting import eventually

PROCESS = f"/{names.EXT_PROC_SERVICE}/Process"


def framed(message: bytes, *, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


@dataclass
class PeerStream:
    """What came back on one stream."""

    peer: "Peer"
    id: int
    head: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    taken: int = 0
    trailers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    closed: bool = False

    def send(self, data: bytes, *, end: bool = False) -> None:
        """Body bytes as they are."""
        self.peer.h2.send_data(self.id, data, end_stream=end)
        self.peer.flush()

    def cancel(self) -> None:
        self.peer.h2.reset_stream(self.id, ngh2.ErrorCode.CANCEL)
        self.peer.flush()

    @property
    def status(self) -> tuple[int, str] | None:
        """gRPC status and details; None: not yet."""
        trailers = self.trailers or self.head
        return (int(trailers["grpc-status"]), trailers.get("grpc-message", "")) if "grpc-status" in trailers else None

    async def ended(self) -> tuple[int, str]:
        """The status, once it is there."""
        await eventually(lambda: self.status is not None)
        assert self.status is not None
        return self.status

    def replies(self) -> list[pb.ProcessingResponse]:
        """The whole messages that have come."""
        return [pb.ProcessingResponse.FromString(message) for message in self._messages()]

    def _messages(self) -> Iterator[bytes]:
        at = 0
        while at + 5 <= len(self.body) and (stop := at + 5 + int.from_bytes(self.body[at + 1 : at + 5], "big")) <= len(self.body):
            yield self.body[at + 5 : stop]
            at = stop


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, *, reads: bool, window: int) -> None:
        self.h2 = ngh2.Connection(
            ngh2.Role.CLIENT,
            ngh2.Configuration(auto_window_update=False, peer_max_concurrent_streams=1_000_000, max_send_header_block_length=1 << 20),
        )
        self._window = window
        self.reads = reads
        self.transport: asyncio.Transport
        self.streams: dict[int, PeerStream] = {}
        self.goaways: list[tuple[int, int]] = []
        """Error code and last stream of each."""
        self.answers_pings = True
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.h2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: self._window})
        self.flush()

    def data_received(self, data: bytes) -> None:
        with contextlib.suppress(ngh2.ConnectionStateError):  # after the last stream that a GOAWAY left open
            self.h2.receive_data(data)
        for event in self.h2.events():
            self._on(event)
        if self.answers_pings:
            self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def open(self, path: str = PROCESS, *, method: str = "POST", **headers: str) -> PeerStream:
        """A new call; underscores in names of headers stand for hyphens."""
        fields = {":method": method, ":scheme": "http", ":path": path, ":authority": "epp", "te": "trailers"}
        fields |= {"content-type": "application/grpc"} | {name.replace("_", "-"): value for name, value in headers.items()}
        stream_id = self.h2.send_request([(name.encode(), value.encode("latin-1")) for name, value in fields.items()])
        stream = self.streams[stream_id] = PeerStream(self, stream_id)
        self.flush()
        return stream

    def request(self, *messages: pb.ProcessingRequest, end: bool = False) -> PeerStream:
        """A new ext_proc stream with these messages."""
        stream = self.open()
        stream.send(b"".join(framed(message.SerializeToString()) for message in messages), end=end)
        return stream

    def take(self, stream: PeerStream) -> None:
        """Open the windows again by what has come on this stream."""
        with contextlib.suppress(ngh2.ConnectionStateError):  # that was the last stream after a GOAWAY
            self.h2.acknowledge_received_data(len(stream.body) - stream.taken, stream.id)
        stream.taken = len(stream.body)
        self.flush()

    def _on(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.GoAwayReceived):
            self.goaways.append((event.error_code, event.last_stream_id))
            return
        if isinstance(event, ngh2.ConnectionClosed):
            self.transport.close()
            return
        stream = self.streams.get(getattr(event, "stream_id", 0))
        if stream is None:  # of the connection, or forgotten
            return
        match event:
            case ngh2.ResponseReceived(headers=headers):
                stream.head = _text(headers)
            case ngh2.DataReceived(data=data):
                stream.body += data
                if self.reads:
                    self.take(stream)
            case ngh2.TrailersReceived(headers=headers):
                stream.trailers = _text(headers)
            case ngh2.StreamReset(error_code=code):
                stream.reset = code
            case ngh2.StreamClosed():
                stream.closed = True


def _text(headers: tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


@contextlib.asynccontextmanager
async def connect(port: int, *, reads: bool = True, window: int = 65535, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """`reads` False: the windows stay closed once `window` bytes came on a stream, or 65,535 on all of them."""
    _, peer = await asyncio.get_running_loop().create_connection(lambda: Peer(reads=reads, window=window), "127.0.0.1", port, ssl=tls)
    try:
        yield peer
    finally:
        peer.transport.abort()
        await eventually(lambda: peer.closed)
