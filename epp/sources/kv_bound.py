"""The socket engines connect to: `kvEventsConfig.zmqEndpoint`, as KServe 0.17 configures it (spec/deploy.md 1.9).

Here the topic is the only thing that tells who speaks: `kv@<pod ip>[:<port>]@<model>`. What comes of each (pod, rank) is
handed over under these words of its own; `kv_events` finds out which endpoint that is. There is no replay in this direction.

What each pod may send is bounded as a stream of its own would be: messages beyond it are read, dropped and counted, and
its sequence shows them as a gap. Used on the stream thread only.
"""

import contextlib
from collections import Counter, OrderedDict
from typing import Final

import zmq

from epp.kvcache.events import blocks, decode, slices
from epp.kvcache.sequence import Apply, EventSequence, Replay, parse_seq
from epp.sources.kv_messages import (
    BLOCKS_A_PART,
    BYTES_A_TURN,
    MESSAGES_A_TURN,
    READ_AHEAD,
    Allowances,
    Failed,
    Named,
    StateChanged,
    Told,
)
from epp.sources.kv_stream import Host

# Token under which the socket itself speaks.
BOUND: Final = -1
MAX_PODS: Final = 4_096
MAX_RANKS: Final = 256

_PREFIX: Final = "kv@"
_TOPIC_PARTS: Final = 3


def pod_of(topic: bytes) -> str | None:
    """Who a topic says is speaking: `10.0.0.5` or `10.0.0.5:8000`; None where it does not say."""
    text = topic.decode("utf-8", "replace")
    parts = text.split("@", 2)
    return parts[1] or None if text.startswith(_PREFIX) and len(parts) == _TOPIC_PARTS else None


class _Speaker:
    """One pod that connected, and the streams of its ranks."""

    __slots__ = ("allowed", "sequences")

    def __init__(self, now: float) -> None:
        self.allowed = Allowances(now)
        self.sequences: dict[int, EventSequence] = {}


class BoundSocket:
    """One SUB socket for all engines that connect."""

    def __init__(self, host: Host, url: str) -> None:
        """Raises ZMQError where the endpoint cannot be bound."""
        self._host = host
        self._errors: Counter[str] = Counter()
        self._speakers: OrderedDict[str, _Speaker] = OrderedDict()
        self.socket = host.socket(zmq.SUB, READ_AHEAD)
        try:
            self.socket.subscribe(b"")
            self.socket.bind(url)
        except zmq.ZMQError:
            self.socket.close(linger=0)
            raise
        self.url: str = self.socket.get_string(zmq.LAST_ENDPOINT)
        host.poller.register(self.socket, zmq.POLLIN)

    def turn(self) -> None:
        """Read a share of what is there."""
        budget = BYTES_A_TURN
        with contextlib.suppress(zmq.Again):  # all is read
            for _ in range(MESSAGES_A_TURN):
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                budget -= self._on_message(frames)
                if budget < 0:
                    break
        for reason, count in self._errors.items():
            self._host.deliver(BOUND, Failed(reason, count))
        self._errors.clear()

    def excuse(self, seconds: float) -> None:
        """Nobody looked for so long."""
        now = self._host.now()
        for speaker in self._speakers.values():
            speaker.allowed.excuse(seconds, now)

    def close(self) -> None:
        """Stop listening."""
        self._host.poller.unregister(self.socket)
        self.socket.close(linger=0)

    def _on_message(self, frames: list[bytes]) -> int:
        size = sum(map(len, frames))
        seq = parse_seq(frames[1]) if len(frames) == 3 else None
        pod = pod_of(frames[0])
        if seq is None:
            self._errors["frames"] += 1
        elif pod is None or not self._host.accepts(frames[0]):
            self._errors["topic"] += 1
        else:
            self._hear(pod, seq, frames[2])
        return size

    def _hear(self, pod: str, seq: int, payload: bytes) -> None:
        now = self._host.now()
        speaker = self._speakers.get(pod)
        if speaker is None:
            speaker = self._speakers[pod] = _Speaker(now)
            if len(self._speakers) > MAX_PODS:
                self._speakers.popitem(last=False)
        allowed = speaker.allowed
        if not allowed.messages.take(1, now) or not allowed.volume.take(len(payload), now):
            self._errors["flood"] += 1
            return
        batch = decode(payload)
        if not (allowed.blocks.take(blocks(batch), now) if batch.events else allowed.waste.take(len(payload), now)):
            self._errors["flood"] += 1
            return
        rank = batch.rank or 0
        sequence = speaker.sequences.get(rank)
        if sequence is None:
            if len(speaker.sequences) >= MAX_RANKS:
                self._errors["rank"] += 1
                return
            sequence = speaker.sequences[rank] = EventSequence(replay=False)
            sequence.connected()
        before = sequence.state if sequence.heard else None
        for action in sequence.live(seq, batch):
            match action:
                case Apply(whole):
                    for part in slices(whole, BLOCKS_A_PART):
                        self._tell(pod, rank, Apply(part))
                case Replay():
                    raise AssertionError("there is no replay in this direction")
                case _:
                    self._tell(pod, rank, action)
        if sequence.state is not before:
            self._tell(pod, rank, StateChanged(sequence.state))

    def _tell(self, pod: str, rank: int, told: Told) -> None:
        self._host.deliver(BOUND, Named(pod, rank, told))
