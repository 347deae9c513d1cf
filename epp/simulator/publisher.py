"""The two ZMQ sockets of a pod: PUB for live batches, ROUTER for replay (spec/kv.md 1.2, 1.4, 1.5).

Both bind. Both are used from the event loop's thread only; sending never blocks (PUB drops beyond its high-water mark,
ROUTER silently beyond its own default of 1,000, as vLLM's do). As in vLLM, a replay request is noticed within 0.1 s.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice

import zmq

from epp.simulator.errors import SimulatorError
from epp.simulator.events import KvEvent, encode_batch

# Batches kept for replay (vLLM's buffer_steps) and the PUB high-water mark, vLLM's defaults.
BUFFER_STEPS = 10_000
HIGH_WATER_MARK = 100_000

# Sequence number of the end marker: -1 as 8 bytes.
END_OF_REPLAY = b"\xff" * 8

POLL_S = 0.1

# Replies sent before other work of the loop gets a turn.
_SLICE = 256


class EventPublisher:
    """Numbers, publishes and keeps the event batches of one engine."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", host: str, *, events_port: int, replay_port: int) -> None:
        """Bind both sockets (port 0: chosen by the OS). Raises SimulatorError if a port is taken."""
        self.topic = ""
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=BUFFER_STEPS)
        self._next_seq = 0
        self._pub = context.socket(zmq.PUB)
        self._replay = context.socket(zmq.ROUTER)
        try:
            self._pub.set(zmq.SNDHWM, HIGH_WATER_MARK)
            self.events_port = _bind(self._pub, host, events_port)
            self.replay_port = _bind(self._replay, host, replay_port)
        except BaseException:
            self.close()
            raise

    def publish(self, timestamp: float, events: Sequence[KvEvent]) -> None:
        """Send one batch and keep it for replay; `timestamp` in Unix seconds."""
        payload = encode_batch(timestamp, events)
        seq = self._next_seq
        self._next_seq += 1
        self._buffer.append((seq, payload))
        self._pub.send_multipart([self.topic.encode(), seq.to_bytes(8, "big"), payload], zmq.NOBLOCK)

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        while True:
            while self._replay.poll(0, zmq.POLLIN):
                await self._answer(self._replay.recv_multipart(zmq.NOBLOCK))
            await asyncio.sleep(POLL_S)

    async def _answer(self, frames: list[bytes]) -> None:
        """[identity, b"", start_seq] -> every kept batch from there on, then the end marker; anything else is ignored."""
        if len(frames) != 3:
            return
        identity, _, start = frames
        first = int.from_bytes(start, "big")
        topic = self.topic.encode()
        batches = iter([(seq, payload) for seq, payload in self._buffer if seq >= first])
        while part := list(islice(batches, _SLICE)):
            for seq, payload in part:
                self._replay.send_multipart([identity, b"", topic, seq.to_bytes(8, "big"), payload], zmq.NOBLOCK)
            await asyncio.sleep(0)
        self._replay.send_multipart([identity, b"", b"", END_OF_REPLAY, b""], zmq.NOBLOCK)

    def close(self) -> None:
        """Close both sockets; unsent batches are dropped."""
        self._pub.close(linger=0)
        self._replay.close(linger=0)


def _bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> int:
    """Bind and return the port; libzmq takes * for one the OS chooses."""
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise SimulatorError(f"cannot listen on {host}:{port} for KV events ({error.strerror}); choose another --base-port") from error
    return int(socket.get_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
