"""The sequence of one event stream: what to apply, what is missing, and when the engine is another one than before.

Sequence numbers are the only witness of loss and restart (spec/kv.md 1.6, 1.15, 8 rules 2-6). This is a pure state
machine for one (endpoint, rank): the source tells what happened (`connected`, `live`, `replayed`, …) and performs the
returned actions in order. Holds no events but the live ones that arrive while a replay runs; those are never thrown
away, and what both bring is applied once.

A replay asks from the last batch known, not from the one after: the answer then begins with a batch whose time stamp
proves that it is still the same engine, and a restart nobody saw is noticed. It asks again until an answer reaches the
first live batch, or, when none waits, brings nothing new: that heals the holes an overrun ROUTER leaves (1.5).

Numbers show a loss only when a later batch comes. So an idle stream is checked from time to time by the same replay,
which normally brings nothing new, and an engine that refuses to be connected to again is gone with all it held.

Must not know sockets, deadlines or the index. One instance belongs to one thread.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from epp.kvcache.events import Batch, weight

SEQ_BYTES: Final = 8
# A replay is given up that brings nothing new this often, or keeps this many live batches waiting, or so many bytes of them.
MAX_ATTEMPTS: Final = 3
MAX_QUEUED: Final = 10_000
MAX_QUEUED_BYTES: Final = 16 << 20

# vLLM counts from 0, llm-d-inference-sim from 1: a stream that begins with either has no lost head.
_FIRST_SEQS: Final = (0, 1)


class StreamState(Enum):
    """As told to `Reporter.kv_stream_state`."""

    CONNECTING = "connecting"
    REPLAYING = "replaying"
    LIVE = "live"
    PARTIAL = "partial"
    """Live, but batches are missing that nothing could bring back, or could not be read."""
    LOST = "lost"
    """The connection broke; what is known stays."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply the batch."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget everything the stream said: another engine speaks, or too much is missing to know what still holds."""


@dataclass(frozen=True, slots=True)
class Gap:
    """So many batches were skipped; counted once, also when a replay brings them back."""

    missing: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Ask the replay socket for everything from this sequence number on."""

    start: int


Action = Apply | Clear | Gap | Replay


def parse_seq(frame: bytes) -> int | None:
    """Sequence number of a frame: its first 8 bytes, big endian; engines may append an incarnation id (1.4). None: malformed."""
    return int.from_bytes(frame[:SEQ_BYTES], "big") if len(frame) >= SEQ_BYTES else None


class EventSequence:
    """State of one stream, from before its first connection to its end."""

    def __init__(self, *, replay: bool) -> None:
        self._has_replay = self._can_replay = replay
        self._phase = StreamState.CONNECTING
        self._partial = False
        self._last: int | None = None
        self._last_ts: float | None = None
        """Time stamp of batch `_last`, by which a replay recognises it."""
        self._newest_ts = float("-inf")
        self._queue: list[tuple[int, Batch]] = []
        """Live batches that wait for the replay to end."""
        self._queued_bytes = 0
        self._checking = False
        """The replay only makes sure that nothing was lost at the end."""
        self._gap_told: int | None = None
        """The batch whose missing predecessors were counted before the replay for them."""
        self._attempts = 0
        self._answer = _Answer()

    @property
    def state(self) -> StreamState:
        """Where the stream stands now."""
        if self._phase is StreamState.LIVE or self._checking:
            return StreamState.PARTIAL if self._partial else StreamState.LIVE
        return self._phase

    @property
    def is_replaying(self) -> bool:
        """A replay is under way, be it only a check."""
        return self._phase is StreamState.REPLAYING

    @property
    def heard(self) -> bool:
        """Something of the engine that speaks now was applied."""
        return self._last is not None

    def connected(self) -> list[Action]:
        """The subscription is established: from now on live batches arrive."""
        if self._phase in (StreamState.LIVE, StreamState.REPLAYING):
            return []
        if self._can_replay:
            return self._start_replay()
        self._phase = StreamState.LIVE
        return []

    def disconnected(self) -> None:
        """The connection broke. Batches that waited are dropped: the replay of the next connection knows which of them still count."""
        self._phase = StreamState.LOST
        self._checking = False
        self._can_replay = self._has_replay
        self._drop_queue()

    def unreachable(self) -> list[Action]:
        """After the connection broke, the engine cannot be connected to: the process that held the blocks is gone."""
        return self._forget() if self._phase is StreamState.LOST and self._last is not None else []

    def check(self) -> list[Action]:
        """Nothing was heard for a while: make sure that nothing was lost since (rule 6), without a word where all is well."""
        if self._phase is not StreamState.LIVE or not self._can_replay:
            return []
        self._checking = True
        return self._start_replay()

    def distrust(self) -> list[Action]:
        """Other witnesses contradict what the stream said: forget it, and learn it anew where a replay can tell."""
        if self._phase is StreamState.LOST:
            return self.unreachable()
        if self._phase is StreamState.CONNECTING:
            return []
        self._drop_queue()
        self._checking = False
        forgotten = self._forget()
        if self._can_replay:
            return forgotten + self._start_replay()
        self._partial = True
        return forgotten

    def live(self, seq: int, batch: Batch) -> list[Action]:
        """A published batch arrived."""
        if not self._can_replay or self._phase is StreamState.LIVE:
            return self._deliver(seq, batch, heal=self._can_replay)
        if self._phase is StreamState.LOST:
            # Still read from the broken connection. What does not follow directly, the next connection's replay brings.
            return [self._apply(seq, batch)] if self._last is not None and seq == self._last + 1 else []
        self._queue.append((seq, batch))
        self._queued_bytes += weight(batch)
        full = len(self._queue) >= MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES
        return self._finish(partial=True) if full else []

    def replayed(self, seq: int, batch: Batch) -> list[Action]:
        """One batch of the answer to the last `Replay`."""
        answer, last = self._answer, self._last
        first, answer.empty = answer.empty, False
        if answer.useless or self._phase is not StreamState.REPLAYING:
            return []
        if last is None:
            self._partial = seq not in _FIRST_SEQS
        elif first and seq == last and batch.ts != self._last_ts:
            answer.useless = True  # another engine, whose earlier batches were not asked for
            return self._forget()
        elif seq <= last:
            return []
        elif seq > last + 1 and not first and self._attempts + 1 < MAX_ATTEMPTS:
            answer.useless = True  # a hole: ask again from its beginning
            return []
        answer.progress = True
        if last is None or (seq == last + 1 and not first):
            return [self._apply(seq, batch)]
        # The engine's buffer has moved on past us, or has a hole for good: what happened in between cannot be known, nor whether it is
        # the same engine.
        forget = self._forget()
        self._partial = True
        return [*forget, self._apply(seq, batch)]

    def replay_ended(self, *, complete: bool) -> list[Action]:
        """The answer ended: with its end marker, or (not complete) by silence."""
        answer = self._answer
        if self._phase is not StreamState.REPLAYING:
            return []
        if answer.empty and not complete:
            return self._finish(partial=self._partial or not self._checking)
        if answer.empty and self._last is not None:
            # The engine no longer knows the batch it once sent: it is a new one with an empty history.
            self._checking = False
            return [*self._forget(), self._ask()]
        if complete and not answer.useless and (self._reaches_live() if self._queue else not answer.progress):
            return self._finish(partial=self._partial)
        self._attempts = 0 if answer.progress else self._attempts + 1
        if self._attempts >= MAX_ATTEMPTS:
            return self._finish(partial=True)
        return [self._ask()]

    def give_up(self) -> list[Action]:
        """The replay takes too long: go live with what there is."""
        return self._finish(partial=True) if self._phase is StreamState.REPLAYING else []

    def renounce(self) -> list[Action]:
        """The history says nothing: go on as if there was none, until the connection breaks."""
        self._can_replay = False
        return self.give_up()

    def _start_replay(self) -> list[Action]:
        self._phase = StreamState.REPLAYING
        self._attempts = 0
        return [self._ask()]

    def _ask(self) -> Action:
        self._answer = _Answer()
        return Replay(self._last or 0)

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0

    def _reaches_live(self) -> bool:
        """Nothing is missing before the first live batch that waits."""
        first = self._queue[0][0]
        return first in _FIRST_SEQS if self._last is None else first <= self._last + 1

    def _finish(self, *, partial: bool) -> list[Action]:
        """Go live: deliver what waited. A gap before the first of it stays, since the replay had its chance to close it."""
        self._phase = StreamState.LIVE
        self._partial = partial
        self._checking = False
        queue, self._queue = self._queue, []
        self._queued_bytes = 0
        actions: list[Action] = []
        for i, (seq, batch) in enumerate(queue):
            actions += self._deliver(seq, batch, heal=self._can_replay and i > 0)
            if self._phase is StreamState.REPLAYING:
                self._queue += queue[i + 1 :]
                break
        return actions

    def _deliver(self, seq: int, batch: Batch, *, heal: bool) -> list[Action]:
        """Place a live batch; `heal`: a replay may be asked for what is missing before it."""
        last = self._last
        if last is None:
            return self._begin(seq, batch, heal=heal)
        if seq == last + 1:
            return [self._apply(seq, batch)]
        if seq <= last:
            if batch.ts is None or batch.ts <= self._newest_ts:
                return []  # a duplicate
            return self._forget() + self._begin(seq, batch, heal=self._can_replay)
        gap: list[Action] = [] if seq == self._gap_told else [Gap(seq - last - 1)]
        self._gap_told = seq
        if heal:
            self._queue.append((seq, batch))
            return gap + self._start_replay()
        self._partial = True
        return [*gap, self._apply(seq, batch)]

    def _begin(self, seq: int, batch: Batch, *, heal: bool) -> list[Action]:
        """First live batch of an engine."""
        if seq > 0 and heal:
            self._queue.append((seq, batch))
            return self._start_replay()
        self._partial = seq not in _FIRST_SEQS
        return [self._apply(seq, batch)]

    def _apply(self, seq: int, batch: Batch) -> Action:
        self._last = seq
        self._last_ts = batch.ts
        if batch.ts is not None:
            self._newest_ts = batch.ts
        if batch.unread:
            self._partial = True
        return Apply(batch)

    def _forget(self) -> list[Action]:
        self._last = None
        self._last_ts = None
        self._newest_ts = float("-inf")
        self._partial = False
        return [Clear()]


@dataclass(slots=True)
class _Answer:
    """What the answer to one replay request has shown so far."""

    empty: bool = True
    useless: bool = False
    """The rest of it cannot be placed: another request is needed."""
    progress: bool = False
