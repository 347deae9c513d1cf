"""What leaves one HTTP/2 connection: replies, statuses, and the bytes libnghttp2 makes of them.

Owned by its Connection; called by the connection and by the tasks of its calls, on the event loop. Everything that was
asked for in a turn of the loop leaves in one write at the end of the turn; what nobody waits for (statuses, windows, chunks
of an answer) leaves a moment later if something has just left, because a write costs as much as all the rest. Two queues hold what cannot leave: the peer's
windows keep bodies in libnghttp2's, where a writer waits for its stream's part to drain; a peer that does not read its
socket keeps bytes in asyncio's, and beyond WRITE_BUFFER_BYTES nothing more is framed.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import ngh2

from epp.server import grpc_headers
from epp.server.conversation import StreamGoneError
from epp.server.limits import Limits
from epp.server.status import Ending, Status

WRITE_BUFFER_BYTES = 1 << 20

# So long may bytes that nobody waits for wait for others to leave with: a millisecond is uvloop's finest.
PATIENCE_S = 0.001

# A client has to end its side once it has our status, and gRPC's do at once: so long it is given before we free the stream.
PEER_ENDS_S = 0.25

UNLESS_CLOSED = contextlib.suppress(ngh2.NGH2Error)
"""The bytes that make us act may also have ended the stream or the connection; then there is nobody left to act upon."""


class Sender(Protocol):
    """Who sends without waiting."""

    id: int

    def drained(self) -> None:
        """Enough of what was queued has left."""


class Outbox:
    """One connection's way out."""

    def __init__(self, h2: ngh2.Connection, loop: asyncio.AbstractEventLoop, limits: Limits, flushed: Callable[[], None]) -> None:
        """`flushed` is called when bytes were framed: there may be events."""
        self._h2 = h2
        self._loop = loop
        self._limits = limits
        self._flushed = flushed
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._soon = False
        """The end of a turn is near: `end_turn` will be called."""
        self._urgent = False
        self._flushed_at = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._ended: dict[int, float] = {}
        """When streams were answered to their end that the peer has not ended, in order."""
        self._sweep: asyncio.TimerHandle | None = None
        self._writers: dict[int, asyncio.Future[None]] = {}
        """Those that wait, by stream."""
        self._senders: dict[int, Sender] = {}
        """Those that are to be told, by stream."""

    def open(self, transport: asyncio.Transport) -> None:
        """From now on bytes leave."""
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self.flush_soon()

    def close(self) -> None:
        """No bytes leave any more."""
        self._transport = None
        self._ended.clear()
        if self._sweep is not None:
            self._sweep.cancel()

    def closed(self, stream_id: int) -> None:
        """A stream is over for both sides."""
        self._ended.pop(stream_id, None)

    def pause(self) -> None:
        """The peer does not read its socket."""
        self._paused = True

    def resume(self) -> None:
        """It does again."""
        self._paused = False
        self.flush_soon()

    # --- a stream -------------------------------------------------------------------------------------------

    def begin(self, stream_id: int) -> None:
        """The head of an answer with messages. Raises StreamGoneError."""
        try:
            self._h2.send_response(stream_id, grpc_headers.RESPONSE)
        except ngh2.NGH2Error as error:
            raise StreamGoneError(str(error)) from error

    def send(self, sender: Sender, data: bytes, *, urgent: bool) -> bool:
        """Bytes of the body; whether too many are queued now: `sender.drained` is called when they have left. Raises StreamGoneError."""
        if not self._queue(sender.id, data, urgent=urgent):
            return False
        self._senders[sender.id] = sender
        return True

    async def write(self, stream_id: int, data: bytes) -> None:
        """Bytes of the body; waits while too many are queued, after these. Raises StreamGoneError."""
        if self._queue(stream_id, data, urgent=True):
            writer = self._writers[stream_id] = self._loop.create_future()
            try:
                await writer
            finally:
                del self._writers[stream_id]

    def answer(self, stream_id: int, head: grpc_headers.Headers, *, half_closed: bool) -> None:
        """A whole answer without messages. `half_closed`: the peer has ended its side."""
        with UNLESS_CLOSED:
            self._h2.send_response(stream_id, head, end_stream=True)
            self._end(stream_id, half_closed=half_closed, urgent=True)

    def end(self, stream_id: int, ending: Ending, *, half_closed: bool) -> None:
        """The status, after all messages."""
        try:
            self._h2.send_trailers(stream_id, grpc_headers.trailers(ending))
        except ngh2.NGH2Error:  # the stream is closed
            return
        self._end(stream_id, half_closed=half_closed, urgent=ending.status is not Status.OK)

    def taken(self, stream_id: int, size: int) -> None:
        """So many bytes that came were taken: open the windows again."""
        try:  # `UNLESS_CLOSED`, at a third of the cost: this is called for every frame
            self._h2.acknowledge_received_data(size, stream_id)
        except ngh2.NGH2Error:
            return
        self.flush_soon(urgent=False)

    def _queue(self, stream_id: int, data: bytes, *, urgent: bool) -> bool:
        """Whether too many bytes are queued now. Raises StreamGoneError."""
        try:
            self._h2.send_data(stream_id, data)
        except ngh2.NGH2Error as error:
            raise StreamGoneError(str(error)) from error
        self.flush_soon(urgent=urgent)
        return self._is_full(stream_id, self._limits.send_queue)

    def _end(self, stream_id: int, *, half_closed: bool, urgent: bool) -> None:
        if not half_closed:
            self._ended[stream_id] = self._loop.time()
            if self._sweep is None:
                self._sweep = self._loop.call_later(PEER_ENDS_S, self._free_ended)
        self.flush_soon(urgent=urgent)

    # --- flushing -------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Whatever is asked for from now on leaves with `end_turn`."""
        self._soon = True

    def end_turn(self) -> None:
        """Send, or wait a moment for more."""
        self._soon = False
        if self._urgent or self._loop.time() - self._flushed_at >= PATIENCE_S:
            self._flush()
        elif self._later is None:
            self._later = self._loop.call_later(PATIENCE_S, self._flush_late)

    def flush_soon(self, *, urgent: bool = True) -> None:
        """Send at the end of this turn of the loop; what is not urgent, perhaps a moment later."""
        self._urgent = self._urgent or urgent
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self.end_turn)

    def _flush_late(self) -> None:
        self._later = None
        self._flush()

    def _flush(self) -> None:
        self._urgent = False
        self._flushed_at = self._loop.time()
        transport = self._transport
        if transport is None or self._paused or transport.is_closing():
            return
        data = self._h2.data_to_send()
        if data:
            transport.write(data)
        if self._writers:
            self._wake_writers()
        if self._senders:
            self._tell_senders()
        self._flushed()

    def _free_ended(self) -> None:
        """Free streams whose answer is out and that the peer does not end. NO_ERROR: it may stop sending (RFC 9113 8.1)."""
        self._sweep = None
        limit = self._loop.time() - PEER_ENDS_S
        for stream_id, ended_at in tuple(self._ended.items()):
            if ended_at > limit:
                break
            if self._reset_if_out(stream_id):
                self._ended.pop(stream_id, None)
        if self._ended:
            self._sweep = self._loop.call_later(PEER_ENDS_S, self._free_ended)
        self.flush_soon()

    def _reset_if_out(self, stream_id: int) -> bool:
        """libnghttp2 holds trailers back, too, while a window is closed."""
        h2 = self._h2
        try:
            if h2.queued_body_size(stream_id) or h2.remote_window_size <= 0 or h2.stream_remote_window_size(stream_id) <= 0:
                return False
            h2.reset_stream(stream_id, ngh2.ErrorCode.NO_ERROR)
        except ngh2.NGH2Error:  # it is closed already
            return True
        return True

    def _is_full(self, stream_id: int, limit: int) -> bool:
        """Whether the writer of this stream has to wait."""
        queued = self._h2.queued_body_size(stream_id)
        return queued > limit or (queued > 0 and self._h2.queued_body_size() > self._limits.connection_send_queue)

    def _wake_writers(self) -> None:
        for stream_id, writer in self._writers.items():
            if not writer.done() and not self._is_full(stream_id, self._limits.send_queue // 2):
                writer.set_result(None)

    def _tell_senders(self) -> None:
        for stream_id, sender in tuple(self._senders.items()):
            try:
                full = self._is_full(stream_id, self._limits.send_queue // 2)
            except ngh2.NGH2Error:  # it is closed
                full = False
            if not full:
                del self._senders[stream_id]
                sender.drained()
