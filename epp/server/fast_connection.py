"""One HTTP/2 connection of the fast transport: libnghttp2 on one side, calls in tasks on the other.

Speaks gRPC over HTTP/2 for the handlers it is given and decides nothing else. Made by the server for every accepted
socket; everything happens on one event loop. What leaves is `fast_outbox`'s business.

A call: HEADERS make a Stream. That of ext_proc is a LiveStream, which hands each message on at once; of the others the first
whole message starts a task. An Ending becomes trailers. RST_STREAM, a lost connection, a deadline or a stopping server end
the exchange or cancel the task. Bounds on what a peer may ask are in `limits`. libnghttp2's
own limits on resets are lifted, because Envoy resets a stream per request (spec/protocol.md 10.2).
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import ngh2

from epp.server import grpc_headers
from epp.server.fast_outbox import UNLESS_CLOSED, Outbox
from epp.server.fast_stream import LiveStream, Stream, TaskStream
from epp.server.grpc_framing import MessageReader
from epp.server.limits import Allowance, Limits
from epp.server.live import LiveExchange, Wire
from epp.server.service import Handler, Repeats
from epp.server.status import Ending, Status

logger = logging.getLogger(__name__)

DEADLINE_PASSED = Ending(Status.DEADLINE_EXCEEDED, "the deadline of the call has passed")
SERVER_STOPS = Ending(Status.UNAVAILABLE, "the server stops")
TOO_MUCH_PENDING = Ending(Status.RESOURCE_EXHAUSTED, "too many incomplete messages on this connection")

_UNLIMITED = (1 << 32, 1 << 32)
# Frames for streams that are closed, and the like: 100,000 at once, 10,000 a second for long.
_GLITCHES = (100_000, 10_000)
_ALIVE = b"alive?\0\0"
_DRAIN = b"drain\0\0\0"
# What HTTP/2 sends in a frame unless told otherwise; nobody is.
_FRAME_BYTES = 16384


@dataclass(slots=True)
class Shared:
    """What the connections of one port have in common."""

    methods: Mapping[bytes, Handler]
    """By path; each call runs in a task."""
    exchanges: Mapping[bytes, Callable[[Wire], LiveExchange]]
    """By path; calls that need none."""
    limits: Limits
    max_message: int
    repeats: Repeats
    connections: "set[Connection]" = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    draining: bool = False
    changed: Callable[[], None] = lambda: None
    """Called when a connection or a task has ended."""


class Connection(asyncio.Protocol):
    """One peer."""

    def __init__(self, shared: Shared) -> None:
        limits = shared.limits
        self._shared = shared
        self._methods = shared.methods
        self._exchanges = shared.exchanges
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._h2 = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                stream_reset_rate_limit=_UNLIMITED,
                glitch_rate_limit=_GLITCHES,
                max_inbound_header_list_size=limits.header_list,
                max_continuations=limits.header_list // _FRAME_BYTES,
            ),
        )
        self._streams: dict[int, LiveStream | TaskStream] = {}
        self._outbox = Outbox(self._h2, self._loop, limits, self._handle_events)
        self._usual_head: tuple[tuple[bytes, bytes], ...] = ()
        """The headers of the last ext_proc call that had no deadline and no compression ..."""
        self._usual_call: Callable[[Wire], LiveExchange] | None = None
        """... and what it calls."""
        self._pending = 0
        """Bytes of incomplete messages."""
        self._silence = Allowance(limits.silent_streams, limits.silent_streams_per_s)
        self._closing = False
        self._heard = False
        self._asked = False
        self._keepalive: asyncio.TimerHandle | None = None
        self.host = ""
        self.impatience: asyncio.TimerHandle | None = None
        """Of who waits for the TLS handshake, before which nothing else is called."""

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there, after the TLS handshake if there is one. asyncio and uvloop set TCP_NODELAY."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        if self.impatience is not None:
            self.impatience.cancel()
        self._shared.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]).removeprefix("::ffff:") if peer else ""
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._complain("a TLS client that does not offer h2 (ALPN) is refused")
            self._transport.abort()
            return
        limits = self._limits
        self._h2.initiate_connection(
            {
                ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
                ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.header_list,
            }
        )
        self._h2.set_local_window_size(limits.connection_window)
        self._keepalive = self._loop.call_later(limits.keepalive_interval_s, self._keep_alive)
        if self._shared.draining:
            self.drain()
        self._outbox.open(self._transport)

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        self._heard = True
        if self._closing:
            return
        outbox = self._outbox
        outbox.begin_turn()
        try:
            self._h2.receive_data(data)
        except ngh2.NGH2Error as error:
            self._give_up(data, error)
        else:
            self._handle_events()
        outbox.end_turn()

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._outbox.pause()

    def resume_writing(self) -> None:
        """It reads again."""
        self._outbox.resume()

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody is there any more."""
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._outbox.close()
        self._lose_streams()
        self._shared.connections.discard(self)
        self._shared.changed()

    # --- for the server -------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new calls, end when the open ones are through (RFC 9113 6.8).

        The peer is told to open no more streams, and after a round trip which was the last: what it had opened by then is served.
        """
        with UNLESS_CLOSED:
            self._h2.send_shutdown_notice()
            self._h2.ping(_DRAIN)
        self._outbox.flush_soon()

    def interrupt_calls(self) -> None:
        """End the open calls with UNAVAILABLE, and the connection with them."""
        with UNLESS_CLOSED:
            self._h2.send_goaway()
        for stream in tuple(self._streams.values()):
            self._interrupt(stream, SERVER_STOPS)
        self._outbox.flush_soon()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # --- what arrives ---------------------------------------------------------------------------------------

    def _handle_events(self) -> None:
        for event in self._h2.events():
            if isinstance(event, ngh2.DataReceived):
                self._data(event)
            elif isinstance(event, ngh2.RequestReceived):
                self._request(event)
            elif isinstance(event, ngh2.StreamClosed):
                self._stream_closed(event.stream_id)
            elif isinstance(event, ngh2.TrailersReceived):
                self._half_closed(event.stream_id)
            elif isinstance(event, ngh2.PingAcknowledged) and event.opaque_data == _DRAIN:
                with UNLESS_CLOSED:
                    self._h2.send_goaway()
            elif isinstance(event, ngh2.ConnectionClosed):
                if event.error_code:
                    self._complain(f"HTTP/2 error {_error_name(event.error_code)}: {event.debug_data[:100]!r}")
                self._close()

    def _request(self, event: ngh2.RequestReceived) -> None:
        if event.headers == self._usual_head and not event.end_stream:  # most calls of a data plane begin alike
            assert self._usual_call is not None, "they are set together"
            reader = MessageReader(self._shared.max_message, gzip=False)
            self._streams[event.stream_id] = LiveStream(self._outbox, self.host, event.stream_id, reader, self._usual_call, self._finish)
            return
        head = dict(event.headers)
        path = head.get(b":path", b"")
        open_exchange, handler = self._exchanges.get(path), self._methods.get(path)
        refusal = grpc_headers.refusal(head, known=open_exchange is not None or handler is not None)
        if refusal is not None:
            self._outbox.answer(event.stream_id, refusal, half_closed=event.end_stream)
            return
        reader = MessageReader(self._shared.max_message, gzip=head.get(b"grpc-encoding") == b"gzip")
        stream: LiveStream | TaskStream
        if open_exchange is not None:
            stream = LiveStream(self._outbox, self.host, event.stream_id, reader, open_exchange, self._finish)
            if b"grpc-encoding" not in head and b"grpc-timeout" not in head:
                self._usual_head, self._usual_call = event.headers, open_exchange
        else:
            assert handler is not None, "an unknown path is refused"
            stream = TaskStream(self._outbox, self.host, event.stream_id, reader, handler)
        timeout = head.get(b"grpc-timeout")
        if timeout is not None:
            seconds = grpc_headers.timeout_s(timeout)
            if seconds is None:
                details = f"not a grpc-timeout: {timeout.decode('utf-8', 'replace')}"
                answer = grpc_headers.without_messages(Ending(Status.INVALID_ARGUMENT, details))
                self._outbox.answer(event.stream_id, answer, half_closed=event.end_stream)
                return
            stream.deadline = self._loop.call_later(seconds, self._interrupt, stream, DEADLINE_PASSED)
        self._streams[event.stream_id] = stream
        if event.end_stream:
            self._half_closed(event.stream_id)

    def _data(self, event: ngh2.DataReceived) -> None:
        data = event.data
        stream = self._streams.get(event.stream_id)
        if stream is None or stream.gone:  # refused, or answered to its end
            self._outbox.taken(event.stream_id, len(data))
            return
        reader = stream.reader
        before = reader.pending
        to_do = stream.feed(data)
        if before or reader.pending:
            self._pending += reader.pending - before
            if self._pending > self._limits.partial_messages:
                self._interrupt(stream, TOO_MUCH_PENDING)
                return
        if event.end_stream:
            self._half_closed(event.stream_id)
        elif to_do and isinstance(stream, TaskStream):
            self._start(stream)

    def _half_closed(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.gone:
            self._pending -= stream.reader.pending
            stream.end()
            if isinstance(stream, TaskStream):
                self._start(stream)

    def _stream_closed(self, stream_id: int) -> None:
        """HTTP/2 is through with a stream, any way."""
        self._outbox.closed(stream_id)
        stream = self._streams.pop(stream_id, None)
        if stream is None or not stream.started:
            self._count_silence()
        if stream is not None:
            self._release(stream)
            self._cancel(stream)

    def _lose_streams(self) -> None:
        for stream in tuple(self._streams.values()):
            self._streams.pop(stream.id)
            self._release(stream)
            self._cancel(stream)

    def _release(self, stream: Stream) -> None:
        """Nothing is read from or written to the stream any more."""
        if not stream.gone:
            stream.close()
            self._pending -= stream.reader.pending
            stream.taken()

    def _count_silence(self) -> None:
        """A stream ended that brought no message (Limits.silent_streams)."""
        if not self._silence.take(self._loop.time()):
            self._complain("streams are opened and reset without a message, too many: the connection takes no new ones")
            self._silence.refill()
            with UNLESS_CLOSED:
                self._h2.send_goaway(ngh2.ErrorCode.ENHANCE_YOUR_CALM)

    # --- calls ----------------------------------------------------------------------------------------------

    def _start(self, stream: TaskStream) -> None:
        if not stream.started:
            task = self._loop.create_task(self._serve(stream))
            stream.start(task)
            self._shared.tasks.add(task)

    async def _serve(self, stream: TaskStream) -> None:
        stream.running = True
        try:
            self._finish(stream, await stream.handler(stream))
        except BaseException:
            self._finish(stream, stream.interruption)
            raise
        finally:
            self._end_task(stream)

    def _end_task(self, stream: TaskStream) -> None:
        if stream.task is not None:
            self._shared.tasks.discard(stream.task)
            stream.task = None  # each holds the other: without this, garbage collection would have to find them
            self._shared.changed()

    def _interrupt(self, stream: LiveStream | TaskStream, ending: Ending) -> None:
        """End a call from outside."""
        stream.interruption = ending
        if isinstance(stream, LiveStream) or not stream.running:
            self._finish(stream, ending)
        self._cancel(stream)

    def _cancel(self, stream: LiveStream | TaskStream) -> None:
        if isinstance(stream, LiveStream):
            stream.interrupt()
            return
        task = stream.task
        if task is not None:
            task.cancel()
            if not stream.running:  # then it never will be, and cannot end itself
                self._end_task(stream)

    def _finish(self, stream: Stream, ending: Ending) -> None:
        """Tell the peer how its call ended."""
        if stream.gone:
            return
        if stream.answered:
            self._outbox.end(stream.id, ending, half_closed=stream.half_closed)
        else:
            self._outbox.answer(stream.id, grpc_headers.without_messages(ending), half_closed=stream.half_closed)
        self._release(stream)

    # --- the end --------------------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        """Ask a silent peer for a sign of life; leave one that gives none, such as a half-open connection's."""
        limits, wait_s = self._limits, self._limits.keepalive_interval_s
        if self._heard:
            self._heard = self._asked = False
        elif self._asked:
            logger.debug("%s: no sign of life for %g s: closed", self.host, limits.keepalive_interval_s + limits.keepalive_timeout_s)
            self._transport.abort()
            return
        else:
            self._asked = True
            with UNLESS_CLOSED:
                self._h2.ping(_ALIVE)
            self._outbox.flush_soon()
            wait_s = limits.keepalive_timeout_s
        self._keepalive = self._loop.call_later(wait_s, self._keep_alive)

    def _give_up(self, data: bytes, error: ngh2.NGH2Error) -> None:
        """The peer does not speak HTTP/2, or beyond all limits."""
        hint = " (TLS, where plaintext is expected: the health port, or see --secure-serving)" if data[:1] == b"\x16" else ""
        self._complain(f"{error}{hint}")
        self._close()

    def _close(self) -> None:
        """Send what was written, then close.

        Reading goes on until the peer closes too: closing with bytes unread would reset the connection, and could cost the peer
        our last words.
        """
        self._closing = True
        self._outbox.close()
        self._lose_streams()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS has an end of its own
            self._transport.close()
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._keepalive = self._loop.call_later(self._limits.keepalive_timeout_s, self._transport.abort)

    def _complain(self, problem: str) -> None:
        logger.log(self._shared.repeats.level(problem), "connection from %s: %s", self.host, problem)


def _error_name(code: int) -> str:
    try:
        return ngh2.ErrorCode(code).name
    except ValueError:
        return str(code)
