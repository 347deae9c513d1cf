"""One (endpoint, rank) we subscribe to: its SUB socket, the monitor of that, and a replay while one runs (spec/kv.md 1.2-1.6).

Translates frames into calls of its `EventSequence` and performs the actions that returns. A turn reads a share of what is
there, in messages and bytes, so that a peer that floods starves nobody; one that sends more than any engine can is cut off
for some seconds. What says nothing that could be used may be little: more of it live cuts off the peer, more of it in a history
ends that, and the stream goes on as if there was none, until the next connection. Errors are counted and told once a turn.

Owned by `kv_streams.StreamThread` and used on its thread only.
"""

import contextlib
from collections import Counter, deque
from typing import Final, Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from epp.kvcache.events import blocks, decode, slices
from epp.kvcache.sequence import Action, Apply, EventSequence, Replay, StreamState, parse_seq
from epp.sources.kv_messages import (
    BLOCKS_A_PART,
    BYTES_A_TURN,
    CATCH_UP_S,
    LIVE_BYTES,
    LIVE_HIGH_WATER_MARK,
    MESSAGES_A_TURN,
    READ_AHEAD,
    Allowances,
    Delivery,
    Failed,
    StateChanged,
    StreamAddress,
    Timing,
    Unreachable,
)
from epp.sources.kv_replay import HIGH_WATER_MARK as REPLAY_HIGH_WATER_MARK
from epp.sources.kv_replay import ReplaySocket, is_end, read_reply

# CLOSED: an attempt to connect failed.
_WATCHED_EVENTS: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_FOREVER: Final = float("inf")


class Host(Protocol):
    """What a stream needs of the thread that owns it."""

    timing: Timing
    poller: zmq.Poller
    drain_until: float
    """When to look for no more messages in this turn."""

    def now(self) -> float:
        """Monotonic seconds."""

    def accepts(self, topic: bytes) -> bool:
        """Whether messages with this topic count."""

    def socket(self, kind: int, high_water_mark: int) -> "zmq.Socket[bytes]":
        """An unconnected socket; raises ZMQError where there are none left."""

    def deliver(self, token: int, delivery: Delivery) -> None:
        """Hand over to the event loop."""

    def has_enough_of(self, token: int) -> bool:
        """The event loop is behind with this stream."""

    def take_replay_slot(self, stream: "Stream") -> bool:
        """Whether a replay may run now; if not, `Stream.replay_may_run` is called when it may."""

    def free_replay_slot(self, stream: "Stream") -> None:
        """The stream's replay is over, or no longer wanted."""


class Stream:
    """The sockets and the sequence of one (endpoint, rank)."""

    def __init__(self, host: Host, token: int, address: StreamAddress) -> None:
        self._host = host
        self._token = token
        self._address = address
        self._sequence = EventSequence(replay=address.replay_port is not None)
        self._told: StreamState | None = None
        self._errors: Counter[str] = Counter()
        now = host.now()
        self._allowed = Allowances(now)
        self._backlog: deque[tuple[float, list[bytes]]] = deque()
        """Received, since when, and not looked at."""
        self._backlog_bytes = 0
        self._is_polled = False
        """The poller looks at the SUB socket."""
        self._sub: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._replay: ReplaySocket | None = None
        self._replay_start: int | None = None
        """Asked for by the sequence, and waiting for a slot."""
        self._patience: float | None = now + host.timing.connect_s
        self._replay_deadline = self._replay_idle = self._check_at = _FOREVER
        self._resume_at = _FOREVER
        """When to connect with a fresh socket."""

    def connect(self) -> None:
        """Begin, or begin again; raises ZMQError where there are no sockets left or the address cannot be read."""
        sub = self._host.socket(zmq.SUB, READ_AHEAD)
        try:
            sub.subscribe(b"")
            # Before connecting, so that no connection goes unnoticed.
            monitor: zmq.Socket[bytes] = sub.get_monitor_socket(_WATCHED_EVENTS)
        except zmq.ZMQError:
            sub.close(linger=0)
            raise
        self._sub, self._monitor = sub, monitor
        self._host.poller.register(monitor, zmq.POLLIN)
        self._poll_where_there_is_room()
        self._tell_state()
        sub.connect(self._address.url(self._address.port))

    def close(self) -> None:
        """Close every socket."""
        self._close_replay()
        self._close_live()

    @property
    def deadline(self) -> float:
        """When to come back at the latest; minus infinity while anything received waits to be looked at, and may be."""
        if self._backlog or (self._replay is not None and self._replay.waits):
            return self._host.now() + CATCH_UP_S if self._host.has_enough_of(self._token) else -_FOREVER
        patience = self._patience if self._patience is not None else _FOREVER
        return min(patience, self._replay_idle, self._replay_deadline, self._resume_at, self._check_at)

    def excuse(self, seconds: float) -> None:
        """Nobody looked for so long."""
        self._allowed.excuse(seconds, self._host.now())

    def check(self) -> None:
        """Make sure that nothing was lost at the end."""
        self._perform(self._sequence.check())

    def distrust(self) -> None:
        """Other witnesses contradict what the stream said."""
        self._perform(self._sequence.distrust())

    def replay_may_run(self) -> None:
        """A slot is free: send the request that waits."""
        if self._replay_start is not None:
            self._ask(self._replay_start)

    def receive(self) -> None:
        """Take messages off the wire without looking at them, even while the event loop is behind."""
        self._take()
        if len(self._backlog) > MESSAGES_A_TURN:
            while self._has_room and self._host.now() < self._host.drain_until and self._sub is not None and self._sub.poll(1):
                self._take()

    def receive_replies(self) -> None:
        """Take replies off the wire, even while the event loop is behind."""
        if self._replay is not None and self._replay.receive():
            self._replay_idle = _FOREVER if self._replay.is_over else self._host.now() + self._host.timing.replay_idle_s

    def turn(self, readable: "dict[zmq.Socket[bytes], int]") -> None:
        """Read a share of what is there: connection events first, since they say what a number means."""
        may_look = not self._host.has_enough_of(self._token)
        if self._monitor in readable:
            self._watch()
        if may_look:
            self._look_at_replies()
        if self._sub in readable:
            self.receive()
        if may_look:
            self._listen()
        self._poll_where_there_is_room()
        if self._errors:
            for reason, count in self._errors.items():
                self._deliver(Failed(reason, count))
            self._errors.clear()

    def expire(self, now: float) -> None:
        """Lose patience, or try again, where it is time to."""
        if self._patience is not None and now >= self._patience:
            self._patience = None
            self._deliver(Unreachable())
        if now >= min(self._replay_idle, self._replay_deadline):
            self._replay_idle = _FOREVER
            if self._replay is None or not self._replay.stop():
                self._end_replay(complete=False)
        if now >= self._resume_at:
            self._resume_at = _FOREVER
            if self._sub is not None:  # libzmq gives up a connection on which something came that is no ZMTP, or too large
                self._errors["protocol"] += 1
                self._close_live()
            try:
                self.connect()
            except zmq.ZMQError:
                self._errors["sockets"] += 1
                self._resume_at = now + self._host.timing.flood_pause_s
        if now >= self._check_at:
            self._check_at = _FOREVER
            self.check()

    # --- the connection ------------------------------------------------------------------------------------------
    def _watch(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if self._monitor is None or not self._monitor.poll(0):
                return
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._patience, self._resume_at = None, _FOREVER
                if self._address.replay_port is not None:
                    self._drop_backlog()  # of the connection before; what of it still counts is replayed
                self._perform(self._sequence.connected())
            else:
                # The next attempt ends by then, if there is one.
                self._resume_at = self._host.now() + 2 * self._host.timing.attempt_s
                self._on_no_connection()

    def _on_no_connection(self) -> None:
        """It broke, or an attempt failed."""
        if self._patience is not None:  # refused: there is no engine to wait for
            self._patience = None
            self._deliver(Unreachable())
        if self._sequence.state is StreamState.LOST:
            self._drop_backlog()  # of an engine that is gone
            self._perform(self._sequence.unreachable())
        elif self._sequence.state is not StreamState.CONNECTING:
            self._lose()

    def _lose(self) -> None:
        self._close_replay()
        self._sequence.disconnected()
        self._perform([])

    @property
    def _has_room(self) -> bool:
        return len(self._backlog) < LIVE_HIGH_WATER_MARK and self._backlog_bytes < LIVE_BYTES

    def _poll_where_there_is_room(self) -> None:
        """A socket that is polled and not read would wake the thread again and again."""
        if self._sub is not None and self._is_polled != self._has_room:
            self._is_polled = self._has_room
            if self._is_polled:
                self._host.poller.register(self._sub, zmq.POLLIN)
            else:
                self._host.poller.unregister(self._sub)

    def _take(self) -> None:
        with contextlib.suppress(zmq.Again):  # all is read
            while self._sub is not None and self._has_room:
                frames = self._sub.recv_multipart(zmq.NOBLOCK)
                now, size = self._host.now(), sum(map(len, frames))
                if not self._allowed.messages.take(1, now) or not self._allowed.volume.take(size, now):
                    self._cut_off(now)
                    return
                self._backlog.append((now, frames))
                self._backlog_bytes += size

    def _listen(self) -> None:
        budget = BYTES_A_TURN
        for _ in range(MESSAGES_A_TURN):
            if budget < 0 or not self._backlog:
                return
            since, frames = self._backlog.popleft()
            size = sum(map(len, frames))
            self._backlog_bytes -= size
            budget -= size
            self._on_live(frames, since)
            self._take()  # what came meanwhile, since libzmq has room for little

    def _cut_off(self, now: float) -> None:
        """More than any engine sends: closing frees what libzmq read ahead, and costs the peer its stream only."""
        self._errors["flood"] += 1
        self._drop_backlog()
        self._lose()
        self._close_live()
        self._resume_at = now + self._host.timing.flood_pause_s

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_bytes = 0

    def _on_live(self, frames: list[bytes], since: float) -> None:
        seq = parse_seq(frames[1]) if len(frames) == 3 else None
        if seq is None:
            self._errors["frames"] += 1
        elif not self._host.accepts(frames[0]):
            self._errors["topic"] += 1
        else:
            batch = decode(frames[2])
            self._perform(self._sequence.live(seq, batch))
            # By when it came: what waited for the event loop was sent in the time it waited.
            may = self._allowed.blocks.take(blocks(batch), since) if batch.events else self._may_waste(frames)
            if not may:
                self._cut_off(self._host.now())

    def _close_live(self) -> None:
        if self._sub is not None and self._monitor is not None:
            self._host.poller.unregister(self._monitor)
            if self._is_polled:
                self._host.poller.unregister(self._sub)
                self._is_polled = False
            self._sub.disable_monitor()
            self._monitor.close(linger=0)
            self._sub.close(linger=0)
        self._sub = self._monitor = None

    # --- replay --------------------------------------------------------------------------------------------------
    def _look_at_replies(self) -> None:
        replay, budget = self._replay, BYTES_A_TURN
        while replay is not None and replay is self._replay and replay.waits and budget > 0:
            frames = replay.next()
            size = sum(map(len, frames))
            budget -= size + 1024
            topic, seq, payload = read_reply(frames)
            waste = seq is None
            if seq is None:
                self._errors["replay_frames"] += 1
            elif is_end(frames):
                self._end_replay(complete=True)
                return
            elif topic is None or self._host.accepts(topic):
                batch = decode(payload)
                waste = not batch.events
                self._perform(self._sequence.replayed(seq, batch))
            if waste and not self._may_waste(frames):
                self._errors["flood"] += 1
                self._perform(self._sequence.renounce())
                return
        if replay is not None and replay is self._replay and replay.cut_off and not replay.waits:
            self._end_replay(complete=False)

    def _may_waste(self, frames: list[bytes]) -> bool:
        return self._allowed.waste.take(sum(map(len, frames)), self._host.now())

    def _end_replay(self, *, complete: bool) -> None:
        self._close_replay_socket()
        if not complete and self._host.now() >= self._replay_deadline:
            self._perform(self._sequence.give_up())
        else:
            self._perform(self._sequence.replay_ended(complete=complete))

    def _ask(self, start: int) -> None:
        self._close_replay_socket()
        self._replay_start = start
        if not self._host.take_replay_slot(self):
            return
        self._replay_start = None
        port = self._address.replay_port
        assert port is not None
        now = self._host.now()
        self._replay_idle = now + self._host.timing.replay_idle_s
        if self._replay_deadline == _FOREVER:
            self._replay_deadline = now + self._host.timing.replay_total_s
        try:
            dealer = self._host.socket(zmq.DEALER, REPLAY_HIGH_WATER_MARK)
            self._replay = ReplaySocket(dealer, self._address.url(port), start, self._host.poller)
        except zmq.ZMQError:
            self._errors["sockets"] += 1
            self._perform(self._sequence.give_up())

    def _close_replay_socket(self) -> None:
        self._replay_idle = _FOREVER
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def _close_replay(self) -> None:
        self._close_replay_socket()
        self._replay_deadline = _FOREVER
        self._replay_start = None
        self._host.free_replay_slot(self)

    # --- what the sequence decides -------------------------------------------------------------------------------
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
        if not self._sequence.is_replaying:
            self._close_replay()
            self._check_at = self._host.now() + self._host.timing.check_s if self._sequence.state is not StreamState.LOST else _FOREVER
        elif replay is not None:
            self._check_at = _FOREVER
            self._ask(replay.start)
        self._tell_state()

    def _tell_state(self) -> None:
        state = self._sequence.state
        if state is not self._told:
            self._told = state
            self._deliver(StateChanged(state))

    def _deliver(self, delivery: Delivery) -> None:
        self._host.deliver(self._token, delivery)
