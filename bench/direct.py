"""An ext_proc client without Envoy, cheap enough that the picker's core is the limit: HTTP/2 frames written by hand.

Says what Envoy says in our default mode: headers, body, end of the stream; and, once the picker has answered, one access-log entry
with the metadata the picker set. Its requests differ in nothing but the stream number, so they are made once. Header blocks it
receives are not decoded: an answer that went through is told by its messages. Anything unexpected ends the run with an error.
One connection here is one TCP connection with as many streams as asked for, on one event loop.
"""

import asyncio
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from bench.load import BenchError
from epp import names
from epp._proto import access_log_pb2, ext_proc_pb2

CONNECT_TIMEOUT_S = 5.0

# What there is to send is sent together: one system call for many requests, and a busy picker does not notice.
_FLUSH_S = 0.001

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 3, 4
_MAX_WINDOW: Final = (1 << 31) - 1
_DEFAULT_WINDOW: Final = 65_535
_FRAME_BYTES: Final = 16_384
_HEAD: Final = struct.Struct(">HBBBI")
_MESSAGE: Final = struct.Struct(">BI")

# Of the answer to a request: a reply to its headers and one to its body.
_REPLIES: Final = 2


def request_messages(body: bytes) -> tuple[bytes, bytes]:
    """What Envoy sends about one request: its headers, and its body to the end."""
    first = ext_proc_pb2.ProcessingRequest()
    headers = {
        ":authority": "bench",
        ":path": "/v1/chat/completions",
        ":method": "POST",
        ":scheme": "http",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "bench/1",
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-proto": "http",
        "x-request-id": "5bd9e6c8-7d25-4b85-9f0e-3a8e8a9e3d11",
    }
    for key, value in headers.items():
        first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    first.protocol_config.request_body_mode = ext_proc_pb2.FULL_DUPLEX_STREAMED
    second = ext_proc_pb2.ProcessingRequest()
    second.request_body.body = body
    second.request_body.end_of_stream = True
    return first.SerializeToString(), second.SerializeToString()


class Connection(asyncio.Protocol):
    """One connection to a picker; `streams` requests are under way at any time once `start` was called."""

    def __init__(self, bodies: Sequence[bytes], answered: Callable[[], None], *, keep_open: bool = False) -> None:
        """`answered` is called for each request the picker answered. `keep_open`: streams do not end, as those of long answers."""
        self._turns: Iterator[Sequence[bytes]] = itertools.cycle([request_frames(body, end=not keep_open) for body in bodies])
        self._answered = answered
        self._keep_open = keep_open
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._next_stream = 1
        self._wanted = 0
        self._open: dict[int, bytearray] = {}
        """Received of each stream's answer."""
        self._log_stream = 0
        self._entries: list[access_log_pb2.HTTPAccessLogEntry] = []
        """Of the access log, to be sent."""
        self._flushing = False
        self._window = _DEFAULT_WINDOW
        """Bytes the picker still takes on this connection."""
        self._unacknowledged = 0
        self.limit = 1 << 31
        """Streams the picker takes at a time on one connection."""
        self.ready = asyncio.Event()
        """Set when the picker has told its limits."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        settings = struct.pack(">HIHI", 2, 0, _INITIAL_WINDOW_SIZE, _MAX_WINDOW)
        credit = struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW)
        self._transport.write(PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, credit))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail("the picker closed the connection")

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at, available = 0, len(received)
        while available - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(received, at)
            end = at + 9 + (high << 8 | low)
            if end > available:
                break
            self._on_frame(kind, flags, stream & _MAX_WINDOW, received[at + 9 : end])
            at = end
        del received[:at]
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    # --- what the owner calls -------------------------------------------------------------------------------------

    def start(self, streams: int) -> None:
        """Keep this many requests under way from now on; with `keep_open`, open this many and no more."""
        assert self._transport is not None
        self._wanted = streams
        self._transport.write(self._requests())

    def close(self) -> None:
        """Reset everything."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            self.failed.cancel()
            transport.abort()

    # --- frames from the picker -----------------------------------------------------------------------------------

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind == _DATA:
            self._unacknowledged += len(payload)
            self._open[stream] += payload
            if self._keep_open and _count(self._open[stream]) >= _REPLIES:
                self._open[stream].clear()
                self._answered()
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self._on_end(stream)
        elif kind == _SETTINGS:
            self._on_settings(flags, payload)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _PING and not flags & _ACK:
            assert self._transport is not None
            self._transport.write(frame(_PING, _ACK, 0, bytes(payload)))
        elif kind in (_RST_STREAM, _GOAWAY, _CONTINUATION):
            self._fail(f"the picker sent a frame of kind {kind}: {bytes(payload)!r}")

    def _on_end(self, stream: int) -> None:
        answer = self._open.pop(stream, None)
        if answer is None or _count(answer) < _REPLIES:
            self._fail("the picker ended a stream without having answered its request")
            return
        self._answered()
        if (entry := log_entry(_first(answer))) is not None:
            self._entries.append(entry)

    def _on_settings(self, flags: int, payload: bytearray) -> None:
        assert self._transport is not None
        if flags & _ACK:
            return
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _MAX_CONCURRENT_STREAMS:
                self.limit = value
            elif name == _INITIAL_WINDOW_SIZE and value < _DEFAULT_WINDOW:
                self._fail(f"the picker's windows of {value} bytes are too small for this client")
        self._transport.write(frame(_SETTINGS, _ACK, 0, b""))
        self.ready.set()

    # --- frames to the picker -------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None:
            self._transport.write(self._log() + self._credit() + self._requests())

    def _requests(self) -> bytes:
        """As many new requests as are wanted and the picker's window takes."""
        parts: list[bytes] = []
        while len(self._open) < self._wanted and self.ready.is_set():
            frames = next(self._turns)
            size = sum(map(len, frames[1:]))
            if size > self._window:
                break
            self._window -= size
            stream = self._new_stream()
            self._open[stream] = bytearray()
            parts += numbered(frames, stream)
        return b"".join(parts)

    def _new_stream(self) -> int:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        return stream

    def _log(self) -> bytes:
        """Entries of the requests that just ended, on this connection's access-log stream."""
        entries, self._entries = self._entries, []
        if not entries:
            return b""
        opening = b""
        if not self._log_stream:
            self._log_stream = self._new_stream()
            path = f"/{names.ACCESS_LOG_SERVICE}/StreamAccessLogs"
            opening = frame(_HEADERS, _END_HEADERS, self._log_stream, _header_block(path))
        framed = _framed(log_message(entries))
        self._window -= len(framed)
        parts = [framed[i : i + _FRAME_BYTES] for i in range(0, len(framed), _FRAME_BYTES)]
        return opening + b"".join(frame(_DATA, 0, self._log_stream, part) for part in parts)

    def _credit(self) -> bytes:
        if self._unacknowledged < _MAX_WINDOW // 4:
            return b""
        increment, self._unacknowledged = self._unacknowledged, 0
        return frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", increment))

    def _fail(self, problem: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(BenchError(problem))


async def connect(port: int, bodies: Sequence[bytes], answered: Callable[[], None], *, keep_open: bool = False) -> Connection:
    """A connection whose peer has told its limits. Raises BenchError."""
    connection = Connection(bodies, answered, keep_open=keep_open)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
            await connection.ready.wait()
    except OSError as error:  # TimeoutError is one
        connection.close()
        raise BenchError(f"no HTTP/2 server answers on port {port}: {error}") from None
    return connection


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame (RFC 9113, 4.1)."""
    return _HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _framed(message: bytes) -> bytes:
    """With gRPC's length before it."""
    return _MESSAGE.pack(0, len(message)) + message


def request_frames(body: bytes, *, end: bool) -> list[bytes]:
    """All frames of one request, without their stream number; the first opens the stream."""
    first, second = map(_framed, request_messages(body))
    parts = [second[i : i + _FRAME_BYTES] for i in range(0, len(second), _FRAME_BYTES)]
    frames = [frame(_HEADERS, _END_HEADERS, 0, _header_block(f"/{names.EXT_PROC_SERVICE}/Process")), frame(_DATA, 0, 0, first)]
    frames += [frame(_DATA, _END_STREAM if end and i == len(parts) - 1 else 0, 0, part) for i, part in enumerate(parts)]
    return frames


def numbered(frames: Sequence[bytes], stream: int) -> Iterator[bytes]:
    """The frames with this stream number, in pieces."""
    number = struct.pack(">I", stream)
    for frame in frames:
        yield frame[:5]
        yield number
        yield frame[9:]


def _header_block(path: str) -> bytes:
    """HPACK without its dynamic table: indexed names, literal values (RFC 7541, appendix A)."""

    def literal(index: bytes, value: str) -> bytes:
        return index + bytes((len(value),)) + value.encode()

    post, http = b"\x83", b"\x86"
    te = b"\x00\x02te" + b"\x08trailers"
    return post + http + literal(b"\x04", path) + literal(b"\x01", "epp") + literal(b"\x0f\x10", "application/grpc") + te


def _count(data: bytearray) -> int:
    """Whole gRPC messages in it."""
    count = at = 0
    while len(data) - at >= _MESSAGE.size:
        at += _MESSAGE.size + int.from_bytes(data[at + 1 : at + 5], "big")
        count += at <= len(data)
    return count


def log_entry(reply: bytes) -> access_log_pb2.HTTPAccessLogEntry | None:
    """What Envoy would log about a request whose headers were answered so; None where the picker set no metadata to find it by."""
    fields = ext_proc_pb2.ProcessingResponse.FromString(reply).dynamic_metadata.fields
    if names.EPP_NAMESPACE not in fields:
        return None
    entry = access_log_pb2.HTTPAccessLogEntry()
    entry.CopyFrom(_ENTRY)
    entry.common_properties.metadata.filter_metadata[names.EPP_NAMESPACE].CopyFrom(fields[names.EPP_NAMESPACE].struct_value)
    return entry


def log_message(entries: Sequence[access_log_pb2.HTTPAccessLogEntry]) -> bytes:
    """One message of the access log."""
    message = access_log_pb2.StreamAccessLogsMessage()
    message.http_logs.log_entry.extend(entries)
    return message.SerializeToString()


def _first(data: bytearray) -> bytes:
    """The first gRPC message in it."""
    return bytes(data[_MESSAGE.size : _MESSAGE.size + _MESSAGE.unpack_from(data)[1]])


def _entry() -> access_log_pb2.HTTPAccessLogEntry:
    entry = access_log_pb2.HTTPAccessLogEntry()
    common = entry.common_properties
    common.access_log_type = access_log_pb2.DOWNSTREAM_END
    common.duration.nanos = 5_000_000
    common.time_to_first_upstream_rx_byte.nanos = 4_000_000
    common.upstream_remote_address.socket_address.address = "127.0.0.1"
    common.upstream_remote_address.socket_address.port_value = 8000
    common.upstream_request_attempt_count = 1
    entry.request.request_body_bytes = 5_120
    entry.response.response_code.value = 200
    entry.response.response_code_details = "via_upstream"
    entry.response.response_body_bytes = 116
    return entry


_ENTRY: Final = _entry()
