"""The thread behind `kv_events`: it owns every ZMQ socket, and nothing else touches one.

For each (endpoint, rank) there is a `kv_stream`; if engines are to connect to us, one `kv_bound` for all of them. Decoded
batches, clears and state changes go to `deliver`, in order. A turn reads a few messages of each, so one that floods does
not starve the others, and nothing of those that the event loop is behind with. Messages are taken off the wire all the same, as far as
there is room: so floods are noticed, and what answers a replay is not dropped by its sender. A few replays run at a time,
the others wait for their turn.

Must not touch the index or the event loop. `open`, `close`, `distrust` and `stop` may be called from any one
other thread.
"""

import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from epp.kvcache.sequence import StreamState
from epp.sources.kv_bound import BoundSocket
from epp.sources.kv_messages import (
    CATCH_UP_S,
    DRAIN_S,
    LOOK_S,
    MAX_EXCUSED_S,
    MAX_MESSAGE_BYTES,
    Delivery,
    Failed,
    StateChanged,
    StreamAddress,
    Timing,
    Unreachable,
)
from epp.sources.kv_stream import Stream

MAX_REPLAYS: Final = 8

_FOREVER: Final = float("inf")
_NO_SOCKETS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Deliver = Callable[[int, Delivery], None]
"""Takes the stream's token and what came of it. Called on the stream thread; must not block."""


class StreamThread:
    """One thread, all streams."""

    def __init__(
        self,
        *,
        deliver: Deliver,
        ended: Callable[[Exception | None], None],
        behind: Callable[[], bool],
        has_enough_of: Callable[[int], bool],
        forget: Callable[[int], None],
        accepts: Callable[[bytes], bool],
        clock: Callable[[], float],
        timing: Timing,
        max_sockets: int,
        bind: str = "",
    ) -> None:
        """`behind`: the event loop has more than enough to apply; `has_enough_of`: of the stream with this token; `forget`: it
        delivers no more. `accepts` judges topics. `ended` is called last, with what went wrong.

        `bind`: where engines may connect to, as ZMQ writes it; empty: nowhere.
        """
        self._max_sockets = max_sockets
        self._bind = bind
        self._bound: BoundSocket | None = None
        self.deliver = deliver
        self.accepts = accepts
        self.now = clock
        self.timing = timing
        self.poller = zmq.Poller()
        self._ended = ended
        self._behind = behind
        self.has_enough_of = has_enough_of
        self._forget = forget
        self.drain_until = 0.0
        """When this turn looks for no more messages that could be received."""
        self._looked = clock()
        self._reads_bound = True
        """The turn before this one did."""
        self._bound_unread_s = 0.0
        """Excused before the next message is read, or time would count twice: as excused, and as passed since the one before."""
        self._streams: dict[int, Stream] = {}
        self._replaying: set[Stream] = set()
        self._want_replay: deque[Stream] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._bell: zmq.Socket[bytes] | None = None
        """Rung by the other thread, after it left a command; its other end is the door."""
        self._thread = threading.Thread(target=self._run, name="epp-kv-events", daemon=True)

    def start(self) -> None:
        """Begin; what was opened before opens now. Raises ZMQError where `bind` cannot be bound."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, self._max_sockets)
        self._door: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._door.bind("inproc://door")
        self._bell = self._context.socket(zmq.PAIR)
        self._bell.connect("inproc://door")
        self._bell.send(b"")
        if self._bind:
            try:
                self._bound = BoundSocket(self, self._bind)
            except zmq.ZMQError:
                self._context.destroy(linger=0)
                raise
        self._thread.start()

    def open(self, token: int, address: StreamAddress) -> None:
        """Begin a stream; `token` names it in deliveries."""
        self._command(lambda: self._open(token, address))

    def close(self, token: int) -> None:
        """End a stream. Deliveries already on their way still come."""
        self._command(lambda: self._close(token))

    def distrust(self, token: int) -> None:
        """Other witnesses contradict what a stream said: it is forgotten, and learnt anew where a replay can tell."""
        self._command(lambda: self._on_stream(token, Stream.distrust))

    @property
    def bound_url(self) -> str:
        """Where engines connect to; empty: nowhere."""
        return self._bound.url if self._bound else ""

    def stop(self) -> None:
        """End all streams and the thread; `ended` tells when."""
        self._command(self._stop)

    def join(self) -> None:
        """Wait for the thread; immediate once `ended` was called."""
        self._thread.join()
        # Not term(): it would wait for ever for a socket that a failure left open.
        self._context.destroy(linger=0)

    # --- on the stream thread --------------------------------------------------------------------------------
    def socket(self, kind: int, high_water_mark: int) -> zmq.Socket[bytes]:
        """An unconnected socket with our options."""
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = high_water_mark
        socket.ipv6 = True
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.reconnect_ivl = int(self.timing.reconnect_s * 1000)
        socket.reconnect_ivl_max = int(self.timing.reconnect_max_s * 1000)
        socket.heartbeat_ivl = int(self.timing.heartbeat_s * 1000)
        socket.heartbeat_timeout = int(self.timing.heartbeat_s * 3000)
        socket.connect_timeout = socket.handshake_ivl = int(self.timing.attempt_s * 1000)
        return socket

    def take_replay_slot(self, stream: Stream) -> bool:
        """Implements kv_stream.Host."""
        if stream in self._replaying:
            return True
        if len(self._replaying) >= MAX_REPLAYS:
            self._want_replay.append(stream)
            return False
        self._replaying.add(stream)
        return True

    def free_replay_slot(self, stream: Stream) -> None:
        """Implements kv_stream.Host."""
        with contextlib.suppress(ValueError):  # it had its slot
            self._want_replay.remove(stream)
        self._replaying.discard(stream)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        if self._bell is not None:
            with contextlib.suppress(zmq.Again):  # rung often enough
                self._bell.send(b"", zmq.NOBLOCK)

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            self.poller.register(self._door, zmq.POLLIN)
            while not self._stopping:
                self._turn()
        except Exception as error:  # noqa: BLE001 - reported by the owner; without it the streams would fall silent
            failure = error
        finally:
            for stream in self._streams.values():
                stream.close()
            if self._bound is not None:
                self._bound.close()
            self._door.close(linger=0)
            self._ended(failure)

    def _turn(self) -> None:
        if self._behind():
            self._excuse(reads_bound=False)
            for stream in tuple(self._replaying):
                stream.receive_replies()
            self.drain_until = self.now() + DRAIN_S
            for stream in self._streams.values():
                stream.receive()
            self._obey(wait_ms=int(CATCH_UP_S * 1000))
            return
        deadline = min((stream.deadline for stream in self._streams.values()), default=_FOREVER)
        wait_ms = int(min(max(0.0, deadline - self.now()), LOOK_S) * 1000) + (deadline > 0)
        readable = dict(self.poller.poll(wait_ms))
        self._excuse(reads_bound=True)
        for stream in tuple(self._replaying):
            stream.receive_replies()
        self.drain_until = self.now() + DRAIN_S
        for stream in self._streams.values():
            stream.turn(readable)
        if self._bound is not None and self._bound.socket in readable:
            self._bound.turn()
        now = self.now()
        for stream in self._streams.values():
            if stream.deadline <= now:
                stream.expire(now)
        while self._want_replay and len(self._replaying) < MAX_REPLAYS:
            self._want_replay.popleft().replay_may_run()
        self._obey(wait_ms=0)

    def _excuse(self, *, reads_bound: bool) -> None:
        """Of what comes at once because nobody looked, no engine is to blame; nor those that connect, of what we left unread."""
        before, self._looked = self._looked, self.now()
        passed = self._looked - before
        stood_still = passed > 2 * LOOK_S
        if stood_still:
            for stream in self._streams.values():
                stream.excuse(min(passed, MAX_EXCUSED_S))
        if stood_still or not self._reads_bound:
            self._bound_unread_s += passed
        self._reads_bound = reads_bound
        if self._bound is not None and reads_bound and self._bound_unread_s:
            self._bound.excuse(min(self._bound_unread_s, MAX_EXCUSED_S))
            self._bound_unread_s = 0.0

    def _obey(self, *, wait_ms: int) -> None:
        if self._door.poll(wait_ms):
            with contextlib.suppress(zmq.Again):  # all is read
                while True:
                    self._door.recv(zmq.NOBLOCK)
            while self._commands:
                self._commands.popleft()()

    def _open(self, token: int, address: StreamAddress) -> None:
        stream = Stream(self, token, address)
        try:
            stream.connect()
        except zmq.ZMQError as error:
            stream.close()
            # No sockets or file descriptors left, or no address: this endpoint stays unheard, the others do not notice.
            self._refuse(token, "sockets" if error.errno in _NO_SOCKETS else "address")
        else:
            self._streams[token] = stream

    def _on_stream(self, token: int, action: Callable[[Stream], None]) -> None:
        stream = self._streams.get(token)
        if stream is not None:
            action(stream)

    def _refuse(self, token: int, reason: str) -> None:
        self.deliver(token, Failed(reason))
        self.deliver(token, StateChanged(StreamState.LOST))
        self.deliver(token, Unreachable())

    def _close(self, token: int) -> None:
        stream = self._streams.pop(token, None)
        if stream is not None:
            stream.close()
        self._forget(token)  # one that could not be opened said so, too

    def _stop(self) -> None:
        self._stopping = True
