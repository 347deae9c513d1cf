"""The two ZMQ sockets of a pod: PUB for live batches, ROUTER for replay (spec/kv.md 1.2, 1.4, 1.5).

Both bind, unless PUB is told to connect to a picker. Both are used from the event loop's thread only; sending never blocks (PUB
drops beyond its high-water mark, ROUTER silently beyond its own default of 1,000, as vLLM's do). As in vLLM, a replay request
is noticed within 0.1 s.
What goes wrong with a batch the fault injector decides; here it is done.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import zmq

from epp.simulator.errors import SimulatorError
from epp.simulator.events import EventFormat, KvEvent, encode_batch
from epp.simulator.faults import FaultInjector, Silence, Treatment

# The PUB high-water mark, vLLM's default.
HIGH_WATER_MARK = 100_000

# Sequence number of the end marker: -1 as 8 bytes.
END_OF_REPLAY = b"\xff" * 8

POLL_S = 0.1

# llm-d's convention: a picker can tell pod and model from the topic alone.
DEFAULT_TOPIC = "kv@{host}:{port}@{model}"

# Replies sent before other work of the loop gets a turn.
_SLICE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherConfig:
    """What of vLLM's kv-events-config can be chosen, and how engines of other versions and makes do it."""

    form: EventFormat = EventFormat.MAPS_IN_ARRAY
    connect: str = ""
    """Publish to this address of a picker that binds, instead of binding."""
    topic: str = DEFAULT_TOPIC
    """First frame of each message; {pod}, {host}, {port} and {model} are filled in. Empty: vLLM's default."""
    first_sequence: int = 0
    """Number of the first batch; llm-d's simulator begins with 1."""

    buffer_steps: int = 10_000
    """Batches kept for replay."""
    replay_frames: Literal[3, 4] = 4
    """Frames of a reply as a DEALER sees them; 3: without the topic, as vLLM before 0.26 and SGLang."""

    def topic_of(self, **names: object) -> str:
        """The topic with its names filled in. Raises SimulatorError for one that is not known."""
        try:
            return self.topic.format(**names)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = ", ".join(f"{{{name}}}" for name in names)
            raise SimulatorError(f"--events-topic {self.topic!r}: only {known} can be filled in") from error


class EventPublisher:
    """Numbers, publishes and keeps the event batches of one engine."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        host: str,
        *,
        events_port: int,
        replay_port: int,
        faults: FaultInjector,
        config: PublisherConfig,
    ) -> None:
        """Bind both sockets (port 0: chosen by the OS), or connect PUB. Raises SimulatorError if that cannot be."""
        self.topic = ""
        self._faults = faults
        self.config = config
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._next_seq = config.first_sequence
        # Batches on their way, by the time they arrive (loop seconds), then by number.
        self._late: list[tuple[float, int, list[bytes]]] = []
        self._queued_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pub = context.socket(zmq.PUB)
        self._replay = context.socket(zmq.ROUTER)
        try:
            self._pub.set(zmq.SNDHWM, HIGH_WATER_MARK)
            self.events_port = _connect(self._pub, config.connect) if config.connect else _bind(self._pub, host, events_port)
            """0 where it connects."""
            self.replay_port = _bind(self._replay, host, replay_port)
        except BaseException:
            self.close()
            raise

    def publish(self, timestamp: float, events: Sequence[KvEvent]) -> None:
        """Send one batch and keep it for replay; `timestamp` in Unix seconds."""
        payload = encode_batch(timestamp, events, self.config.form)
        seq = self._next_seq
        self._next_seq += 1
        treatment = self._faults.treat()
        self._keep(seq, payload, treatment)
        message = [self.topic.encode(), seq.to_bytes(8, "big"), payload]
        self._send(seq, message, treatment)

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        while True:
            while self._replay.poll(0, zmq.POLLIN):
                await self._answer(self._replay.recv_multipart(zmq.NOBLOCK))
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        """Close both sockets; unsent batches are dropped."""
        self._late.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._pub.close(linger=0)
        self._replay.close(linger=0)

    def _keep(self, seq: int, payload: bytes, treatment: Treatment) -> None:
        if treatment.ring == "forgets":
            self._buffer.clear()
        elif treatment.ring == "keeps":
            self._buffer.append((seq, payload))

    def _send(self, seq: int, message: list[bytes], treatment: Treatment) -> None:
        """Now, or when the batch and those it must not overtake are due."""
        due = asyncio.get_running_loop().time() + treatment.delay_s
        if treatment.in_order:
            due = self._queued_until = max(due, self._queued_until)
        for _ in range(treatment.sent):
            heapq.heappush(self._late, (due, seq, message))
        self._send_due()

    def _send_due(self) -> None:
        """Send what is due, and come back for the rest."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._late and self._late[0][0] <= loop.time():
            self._pub.send_multipart(heapq.heappop(self._late)[2], zmq.NOBLOCK)
        if self._late:
            self._timer = loop.call_at(self._late[0][0], self._send_due)

    async def _answer(self, frames: list[bytes]) -> None:
        """[identity, b"", start_seq] -> every kept batch from there on, then the end marker; anything else is ignored."""
        if len(frames) != 3 or self._faults.faults.silence is Silence.PUBLISHER:
            return
        identity, _, start = frames
        first = int.from_bytes(start, "big")
        topic = self.topic.encode()
        batches = iter([(seq, payload) for seq, payload in self._buffer if seq >= first])
        while part := list(islice(batches, _SLICE)):
            for seq, payload in part:
                self._reply(identity, topic, seq.to_bytes(8, "big"), payload)
            await asyncio.sleep(0)
        self._reply(identity, b"", END_OF_REPLAY, b"")

    def _reply(self, identity: bytes, topic: bytes, seq: bytes, payload: bytes) -> None:
        head = [identity, b"", topic] if self.config.replay_frames == 4 else [identity, b""]
        self._replay.send_multipart([*head, seq, payload], zmq.NOBLOCK)


def _connect(socket: "zmq.Socket[bytes]", address: str) -> int:
    """Connect, now or when the picker is there; no port is taken."""
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise SimulatorError(f"cannot publish to {address} ({error.strerror}); --connect-events takes tcp://<host>:<port>") from error
    return 0


def _bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> int:
    """Bind and return the port; libzmq takes * for one the OS chooses."""
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise SimulatorError(f"cannot listen on {host}:{port} for KV events ({error.strerror}); choose another --base-port") from error
    return int(socket.get_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
