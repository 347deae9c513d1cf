"""The thread behind `kv_events`: it owns every ZMQ socket, and nothing else touches one.

For each (endpoint, rank) a SUB socket and its monitor, and while a replay runs a DEALER (spec/kv.md 1.2-1.5). A stream
translates frames into calls of its `EventSequence` and performs the actions it returns; decoded batches, clears and
state changes go to `deliver`, in order. What is received is bounded: a turn reads a few messages of each stream, so
one that floods does not starve the others, and none while the event loop is behind; then ZMQ's high-water mark
holds, and what that drops shows as a gap.

A replay is drained by libzmq's own thread into a queue without limit, since a publisher's ROUTER drops what its peer
does not take at once. Each request gets a fresh DEALER, so that no late reply of an earlier one is taken for its answer.

Must not touch the index or the event loop. `open`, `close` and `stop` may be called from any one other thread.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from epp.kvcache.events import decode, slices
from epp.kvcache.sequence import SEQ_BYTES, Action, Apply, Clear, EventSequence, Gap, Replay, StreamState, parse_seq

LIVE_HIGH_WATER_MARK: Final = 10_000
# A step of an engine announces at most what it computes: some 30,000 tokens, 200 KB. Beyond this a peer is no engine.
MAX_MESSAGE_BYTES: Final = 64 << 20
# Messages read from one stream before the next has its turn, and blocks in one part handed to the event loop.
MESSAGES_A_TURN: Final = 64
BLOCKS_A_PART: Final = 512

# While the event loop is behind, the thread looks up this often.
CATCH_UP_MS: Final = 5

_END_OF_REPLAY: Final = b"\xff" * SEQ_BYTES
_WATCHED_EVENTS: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
_FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Timing:
    """Patience with peers; seconds."""

    replay_idle_s: float = 2.0
    """A replay socket silent for this long is given up."""
    replay_total_s: float = 120.0
    """So is a replay that takes this long in all."""
    connect_s: float = 5.0
    """An endpoint not connected by then keeps nobody waiting for the start-up; it is tried on."""
    reconnect_s: float = 0.1
    reconnect_max_s: float = 1.0
    """First and longest pause between attempts to connect."""
    heartbeat_s: float = 5.0
    """A peer that answers no ZMTP ping for three times this is taken for disconnected."""


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """Where one (endpoint, rank) publishes."""

    host: str
    """IP literal, without brackets."""
    port: int
    replay_port: int | None

    def url(self, port: int) -> str:
        """As ZMQ writes it."""
        return f"tcp://[{self.host}]:{port}" if ":" in self.host else f"tcp://{self.host}:{port}"


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The stream's state is another one."""

    state: StreamState


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No connection within the patience of a start-up."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Something about the stream was wrong: low-cardinality reason."""

    reason: str


Delivery = Apply | Clear | Gap | StateChanged | Unreachable | Failed
Deliver = Callable[[int, Delivery], None]
"""Takes the stream's token and what came of it. Called on the stream thread; must not block."""


class _Stream:
    """The sockets and the sequence of one (endpoint, rank)."""

    def __init__(self, thread: "StreamThread", token: int, address: StreamAddress) -> None:
        self._thread = thread
        self._token = token
        self._address = address
        self._sequence = EventSequence(replay=address.replay_port is not None)
        self._told: StreamState | None = None
        self._sub = thread.socket(zmq.SUB, LIVE_HIGH_WATER_MARK)
        try:
            self._sub.subscribe(b"")
            # Before connecting, so that no connection goes unnoticed.
            self._monitor: zmq.Socket[bytes] = self._sub.get_monitor_socket(_WATCHED_EVENTS)
        except zmq.ZMQError:
            self._sub.close(linger=0)
            raise
        self._dealer: zmq.Socket[bytes] | None = None
        self._patience: float | None = thread.now() + thread.timing.connect_s
        self._replay_deadline = self._replay_idle = _FOREVER
        for socket in (self._monitor, self._sub):
            thread.poller.register(socket, zmq.POLLIN)

    def connect(self) -> None:
        """Begin; raises ZMQError for an address ZMQ cannot read."""
        self._tell_state()
        self._sub.connect(self._address.url(self._address.port))

    def close(self) -> None:
        """Close every socket."""
        self._close_replay()
        for socket in (self._monitor, self._sub):
            self._thread.poller.unregister(socket)
        self._sub.disable_monitor()
        self._monitor.close(linger=0)
        self._sub.close(linger=0)

    @property
    def deadline(self) -> float:
        """When `expire` has to be called at the latest."""
        patience = self._patience if self._patience is not None else _FOREVER
        return min(patience, self._replay_idle, self._replay_deadline)

    def turn(self, readable: dict[zmq.Socket[bytes], int]) -> None:
        """Read what is there: connection events first, since they say what a number means."""
        if self._monitor in readable:
            for _ in range(MESSAGES_A_TURN):
                if not self._monitor.poll(0):
                    break
                self._on_connection(recv_monitor_message(self._monitor)["event"])
        if self._dealer is not None and self._dealer in readable:
            self._drain(self._dealer, self._on_reply)
        if self._sub in readable:
            self._drain(self._sub, self._on_live)

    def expire(self, now: float) -> None:
        """Lose patience where it is time to."""
        if self._patience is not None and now >= self._patience:
            self._patience = None
            self._deliver(Unreachable())
        if self._dealer is not None and now >= min(self._replay_idle, self._replay_deadline) and not self._dealer.poll(0):
            self._end_replay(complete=False)

    def _drain(self, socket: zmq.Socket[bytes], handle: Callable[[list[bytes]], None]) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(MESSAGES_A_TURN):
                if socket.closed:
                    break
                handle(socket.recv_multipart(zmq.NOBLOCK))

    def _on_connection(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._patience = None
            self._perform(self._sequence.connected())
        elif event == zmq.EVENT_DISCONNECTED:
            self._close_replay()
            self._sequence.disconnected()
            self._perform([])
        elif self._patience is not None:  # refused: there is no engine to wait for
            self._patience = None
            self._deliver(Unreachable())

    def _on_live(self, frames: list[bytes]) -> None:
        seq = parse_seq(frames[1]) if len(frames) == 3 else None
        if seq is None:
            self._deliver(Failed("frames"))
        elif not self._thread.accepts(frames[0]):
            self._deliver(Failed("topic"))
        else:
            self._perform(self._sequence.live(seq, decode(frames[2])))

    def _on_reply(self, frames: list[bytes]) -> None:
        """[b"", topic, seq, payload]; older engines leave out the topic (spec/kv.md 1.5)."""
        self._replay_idle = self._thread.now() + self._thread.timing.replay_idle_s
        seq = parse_seq(frames[-2]) if len(frames) in (3, 4) else None
        if seq is None:
            self._deliver(Failed("replay_frames"))
        elif frames[-2][:SEQ_BYTES] == _END_OF_REPLAY:
            self._end_replay(complete=True)
        elif len(frames) == 3 or self._thread.accepts(frames[1]):
            self._perform(self._sequence.replayed(seq, decode(frames[-1])))

    def _end_replay(self, *, complete: bool) -> None:
        self._close_replay()
        if not complete and self._thread.now() >= self._replay_deadline:
            self._perform(self._sequence.give_up())
        else:
            self._perform(self._sequence.replay_ended(complete=complete))

    def _perform(self, actions: list[Action]) -> None:
        replay = None
        for action in actions:
            match action:
                case Apply(batch):
                    for part in slices(batch, BLOCKS_A_PART):
                        self._deliver(Apply(part))
                case Replay():
                    replay = action
                case _:
                    self._deliver(action)
        if self._sequence.state is not StreamState.REPLAYING:
            self._close_replay()
            self._replay_deadline = _FOREVER
        elif replay is not None:
            self._ask(replay.start)
        self._tell_state()

    def _ask(self, start: int) -> None:
        self._close_replay()
        port = self._address.replay_port
        assert port is not None
        now = self._thread.now()
        self._replay_idle = now + self._thread.timing.replay_idle_s
        if self._replay_deadline == _FOREVER:
            self._replay_deadline = now + self._thread.timing.replay_total_s
        try:
            self._dealer = self._thread.socket(zmq.DEALER, 0)
        except zmq.ZMQError:
            self._deliver(Failed("sockets"))
            self._perform(self._sequence.give_up())
            return
        self._dealer.connect(self._address.url(port))
        self._dealer.send_multipart([b"", start.to_bytes(SEQ_BYTES, "big")])
        self._thread.poller.register(self._dealer, zmq.POLLIN)

    def _close_replay(self) -> None:
        self._replay_idle = _FOREVER
        if self._dealer is not None:
            self._thread.poller.unregister(self._dealer)
            self._dealer.close(linger=0)
            self._dealer = None

    def _tell_state(self) -> None:
        state = self._sequence.state
        if state is not self._told:
            self._told = state
            self._deliver(StateChanged(state))

    def _deliver(self, delivery: Delivery) -> None:
        self._thread.deliver(self._token, delivery)


class StreamThread:
    """One thread, all streams."""

    def __init__(
        self,
        *,
        deliver: Deliver,
        ended: Callable[[Exception | None], None],
        behind: Callable[[], bool],
        accepts: Callable[[bytes], bool],
        clock: Callable[[], float],
        timing: Timing,
        max_sockets: int,
    ) -> None:
        """`behind`: the event loop has more than enough to apply. `accepts` judges topics. `ended` is called last, with what went wrong."""
        self._max_sockets = max_sockets
        self.deliver = deliver
        self.accepts = accepts
        self.now = clock
        self.timing = timing
        self.poller = zmq.Poller()
        self._ended = ended
        self._behind = behind
        self._streams: dict[int, _Stream] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._bell: zmq.Socket[bytes] | None = None
        """Rung by the other thread, after it left a command; its other end is the door."""
        self._thread = threading.Thread(target=self._run, name="epp-kv-events", daemon=True)

    def start(self) -> None:
        """Begin; what was opened before opens now."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, self._max_sockets)
        self._door: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._door.bind("inproc://door")
        self._bell = self._context.socket(zmq.PAIR)
        self._bell.connect("inproc://door")
        self._bell.send(b"")
        self._thread.start()

    def open(self, token: int, address: StreamAddress) -> None:
        """Begin a stream; `token` names it in deliveries."""
        self._command(lambda: self._open(token, address))

    def close(self, token: int) -> None:
        """End a stream. Deliveries already on their way still come."""
        self._command(lambda: self._close(token))

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
        return socket

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
            self._door.close(linger=0)
            self._ended(failure)

    def _turn(self) -> None:
        if self._behind():
            self._obey(wait_ms=CATCH_UP_MS)
            return
        deadline = min((stream.deadline for stream in self._streams.values()), default=_FOREVER)
        wait_ms = None if deadline == _FOREVER else int(max(0.0, deadline - self.now()) * 1000) + 1
        readable = dict(self.poller.poll(wait_ms))
        for stream in self._streams.values():
            stream.turn(readable)
        now = self.now()
        for stream in self._streams.values():
            if stream.deadline <= now:
                stream.expire(now)
        self._obey(wait_ms=0)

    def _obey(self, *, wait_ms: int) -> None:
        if self._door.poll(wait_ms):
            with contextlib.suppress(zmq.Again):
                while True:
                    self._door.recv(zmq.NOBLOCK)
            while self._commands:
                self._commands.popleft()()

    def _open(self, token: int, address: StreamAddress) -> None:
        try:
            stream = _Stream(self, token, address)
        except zmq.ZMQError:
            # No sockets or file descriptors left: this endpoint stays unheard, the others do not notice.
            self._refuse(token, "sockets")
            return
        try:
            stream.connect()
        except zmq.ZMQError:
            stream.close()
            self._refuse(token, "address")
        else:
            self._streams[token] = stream

    def _refuse(self, token: int, reason: str) -> None:
        self.deliver(token, Failed(reason))
        self.deliver(token, StateChanged(StreamState.LOST))
        self.deliver(token, Unreachable())

    def _close(self, token: int) -> None:
        stream = self._streams.pop(token, None)
        if stream is not None:
            stream.close()

    def _stop(self) -> None:
        self._stopping = True
