"""The two ZMQ sockets of a pod: PUB for live batches, ROUTER for replay (spec/kv.md 1.2, 1.4, 1.5).

Both bind. Both are used from the event loop's thread only; sending never blocks (PUB drops beyond its high-water mark,
ROUTER silently beyond its own default of 1,000, as vLLM's do). As in vLLM, a replay request is noticed within 0.1 s.
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
from epp.simulator.events import KvEvent, encode_batch
from epp.simulator.faults import FaultInjector, Silence, Treatment

# The PUB high-water mark, vLLM's default.
HIGH_WATER_MARK = 100_000

# Sequence number of the end marker: -1 as 8 bytes.
END_OF_REPLAY = b"\xff" * 8

POLL_S = 0.1

# Replies sent before other work of the loop gets a turn.
_SLICE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherConfig:
    """What of vLLM's kv-events-config can be chosen."""

    buffer_steps: int = 10_000
    """Batches kept for replay."""
    replay_frames: Literal[3, 4] = 4
    """Frames of a reply as a DEALER sees them; 3: without the topic, as vLLM before 0.26 and SGLang."""


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
        """Bind both sockets (port 0: chosen by the OS). Raises SimulatorError if a port is taken."""
        self.topic = ""
        self._faults = faults
        self.config = config
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._next_seq = 0
        # Batches on their way, by the time they arrive (loop seconds), then by number.
        self._late: list[tuple[float, int, list[bytes]]] = []
        self._queued_until = 0.0
        self._pub = context.socket(zmq.PUB)
        self._replay = context.socket(zmq.ROUTER)
        try:
            self._pub.set(zmq.SNDHWM, HIGH_WATER_MARK)
            self.events_port = _bind(self._pub, host, events_port)
            self.replay_port = _bind(self._replay, host, replay_port)
        except BaseException:
            self.close()
            raise

    @property
    def published(self) -> int:
        """Batches so far: the number of the next one."""
        return self._next_seq

    def publish(self, timestamp: float, events: Sequence[KvEvent]) -> None:
        """Send one batch and keep it for replay; `timestamp` in Unix seconds."""
        payload = encode_batch(timestamp, events)
        seq = self._next_seq
        self._next_seq += 1
        treatment = self._faults.treat()
        self._keep(seq, payload, treatment)
        message = [self.topic.encode(), seq.to_bytes(8, "big"), payload]
        for _ in range(treatment.sent):
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
        self._pub.close(linger=0)
        self._replay.close(linger=0)

    def _keep(self, seq: int, payload: bytes, treatment: Treatment) -> None:
        if treatment.ring == "forgets":
            self._buffer.clear()
        elif treatment.ring == "keeps":
            self._buffer.append((seq, payload))

    def _send(self, seq: int, message: list[bytes], treatment: Treatment) -> None:
        """Now, or when the batch and those it must not overtake are due."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = now + treatment.delay_s
        if treatment.in_order:
            due = self._queued_until = max(due, self._queued_until)
        if due <= now:
            self._pub.send_multipart(message, zmq.NOBLOCK)
            return
        heapq.heappush(self._late, (due, seq, message))
        loop.call_at(due, self._send_due)

    def _send_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._late and self._late[0][0] <= now:
            self._pub.send_multipart(heapq.heappop(self._late)[2], zmq.NOBLOCK)
        if self._late:  # a timer may ring early by its resolution
            asyncio.get_running_loop().call_at(self._late[0][0], self._send_due)

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


def _bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> int:
    """Bind and return the port; libzmq takes * for one the OS chooses."""
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise SimulatorError(f"cannot listen on {host}:{port} for KV events ({error.strerror}); choose another --base-port") from error
    return int(socket.get_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
