"""gRPC's message framing on the bytes of one stream (gRPC over HTTP/2, "Length-Prefixed-Message"), and gzip. Pure, no I/O.

    message = flag (1 byte: 1 compressed, 0 not) length (4 bytes, big endian) data

Called by the fast transport for every DATA frame, so the usual case, whole messages in one piece, copies a message once.
Any chunking of the same bytes gives the same messages and the same failure.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from epp.server.status import CallError, Status

HEADER_BYTES: Final = 5
_HEADER: Final = struct.Struct(">BI")
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


def frame(*messages: bytes) -> bytes:
    """Messages as they are sent: uncompressed."""
    if len(messages) == 1:
        return _HEADER.pack(0, len(messages[0])) + messages[0]
    parts: list[bytes] = []
    for message in messages:
        parts.append(_HEADER.pack(0, len(message)))
        parts.append(message)
    return b"".join(parts)


class MessageReader:
    """The messages of one stream. After a failure nothing is read any more."""

    __slots__ = ("_buffer", "_gzip", "_limit", "_wanted", "failure", "pending")

    def __init__(self, limit: int, *, gzip: bool) -> None:
        """`limit`: bytes of the largest message, compressed and inflated alike; `gzip`: whether the peer said it compresses."""
        self._limit = limit
        self._gzip = gzip
        self._buffer = bytearray()
        self._wanted = HEADER_BYTES
        """Bytes from the start of the buffer at which there is something to do: a header's, or a whole message's."""
        self.failure: CallError | None = None
        """What the peer sent instead of a message, after those that were returned."""
        self.pending = 0
        """Bytes kept of a message whose end has not arrived."""

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The messages that `data` completes; see `failure` too."""
        if not self.pending and self.failure is None and data[:1] == b"\0":
            size = int.from_bytes(data[1:HEADER_BYTES], "big")
            if size == len(data) - HEADER_BYTES and size <= self._limit:  # what nearly every DATA frame is
                return (data[HEADER_BYTES:],)
        return self._feed(data)

    def _feed(self, data: bytes) -> Sequence[bytes]:
        """The same for any bytes."""
        if self.failure is not None:
            return ()
        messages: list[bytes] = []
        try:
            at = self._complete(data, messages) if self._buffer else 0
            end = len(data)
            while at < end:
                stop = at + HEADER_BYTES
                if stop <= end:
                    stop += self._length(data, at)
                if stop > end:
                    self._wanted = stop - at
                    self._buffer += data[at:]
                    break
                messages.append(self._plain(data[at], data[at + HEADER_BYTES : stop]))
                at = stop
        except CallError as error:
            self.failure = error
            self._buffer.clear()
        self.pending = len(self._buffer)
        return messages

    def end(self) -> None:
        """The peer sends no more: an incomplete message is a failure."""
        if self.pending:
            self.failure = CallError(Status.INTERNAL, f"the stream ended within a message: {self.pending} bytes of it arrived")
            self._buffer.clear()
            self.pending = 0

    def _complete(self, data: bytes, messages: list[bytes]) -> int:
        """Finish the message in the buffer; where in `data` the next one begins."""
        buffer, at = self._buffer, 0
        if len(buffer) < HEADER_BYTES:
            at = min(HEADER_BYTES - len(buffer), len(data))
            buffer += data[:at]
            if len(buffer) < HEADER_BYTES:
                return at
            self._wanted = HEADER_BYTES + self._length(buffer, 0)
        missing = self._wanted - len(buffer)
        buffer += data[at : at + missing]
        if len(buffer) == self._wanted:
            with memoryview(buffer) as whole:
                message = bytes(whole[HEADER_BYTES:])
            flag = buffer[0]
            buffer.clear()
            self._wanted = HEADER_BYTES
            messages.append(self._plain(flag, message))
        return at + missing

    def _length(self, data: bytes | bytearray, at: int) -> int:
        length = int.from_bytes(data[at + 1 : at + HEADER_BYTES], "big")
        if length > self._limit:
            raise self._too_large(f"{length} bytes")
        return length

    def _plain(self, flag: int, message: bytes) -> bytes:
        if flag == 0:
            return message
        if flag != 1 or not self._gzip:
            raise CallError(Status.INTERNAL, f"a message with the compression flag {flag} on a stream without compression")
        return self._inflated(message)

    def _inflated(self, message: bytes) -> bytes:
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        try:
            plain = inflater.decompress(message, self._limit + 1)
        except zlib.error as error:
            raise CallError(Status.INTERNAL, f"a message that is no gzip: {error}") from None
        if len(plain) > self._limit:
            raise self._too_large("gzip, inflated")
        if not inflater.eof or inflater.unused_data:
            raise CallError(Status.INTERNAL, "a message that is not one whole gzip member")
        return plain

    def _too_large(self, what: str) -> CallError:
        return CallError(
            Status.RESOURCE_EXHAUSTED, f"a message ({what}) over the limit of {self._limit} bytes: raise --grpc-max-recv-msg-size"
        )
