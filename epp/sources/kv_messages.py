"""What the KV-event thread and the event loop say to each other, and the bounds both keep.

Plain records; no sockets, no clock. `kv_stream`, `kv_replay`, `kv_bound` and `kv_streams` make deliveries on their thread;
`kv_events` takes them on the loop.
"""

from dataclasses import dataclass
from typing import Final

from epp.kvcache.events import weight
from epp.kvcache.sequence import Apply, Clear, Gap, StreamState

# What was received of a live stream and not looked at. All that is allowed at once (below) fits, so that a flood is noticed before anything of
# it is looked at.
LIVE_HIGH_WATER_MARK: Final = 10_000
LIVE_BYTES: Final = 10 << 20
# A step announces what it computes: 130,000 tokens are less than 1 MB. A peer that sends more than this at once is cut off.
MAX_MESSAGE_BYTES: Final = 2 << 20
# Messages of a connection that libzmq may hold in front of that. It counts no bytes, and its thread reads on while ours does something else, a
# gigabyte a second on one host; beyond this the sender waits, as it would for a slow network.
READ_AHEAD: Final = 4
# One stream's share of a turn; then the next has its own.
MESSAGES_A_TURN: Final = 64
BYTES_A_TURN: Final = 512 << 10
# Where more of a stream waits than is looked at in a turn, so much of the turn is for what else comes: a flood is noticed while little of it
# was looked at. All streams share it.
DRAIN_S: Final = 0.005
# What the event loop is behind with is looked at again after so long.
CATCH_UP_S: Final = 0.005
# The thread looks at its sockets this often at least. Where it did not for twice as long it stood still, with its machine or for
# want of a CPU, and what engines sent meanwhile comes at once: so much of it is no flood, if it comes soon.
LOOK_S: Final = 1.0
MAX_EXCUSED_S: Final = 30.0
EXCUSE_LASTS_S: Final = 10.0
# Blocks in one part handed to the event loop.
BLOCKS_A_PART: Final = 512
# No engine publishes faster than this for long: (a second, at once).
MESSAGES_ALLOWED: Final = (2_000, 2_000)
BYTES_ALLOWED: Final = (16 << 20, 8 << 20)
# Nor does any compute and evict more blocks than this; to read of so many takes half of the thread's time.
BLOCKS_ALLOWED: Final = (100_000, 200_000)
# Of all these, what says nothing that could be used, live or in a history: reading it can cost as much as eight times as many bytes of other things.
WASTE_ALLOWED: Final = (2 << 20, 1 << 20)
# What Python makes of a delivery without events.
_TOLD_BYTES: Final = 128


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
    attempt_s: float = 3.0
    """An attempt to connect, handshake included, that takes this long has failed."""
    heartbeat_s: float = 2.0
    """A peer that answers no ZMTP ping for three times this is taken for disconnected."""
    check_s: float = 30.0
    """A stream silent for this long is checked for what it lost at its end."""
    flood_pause_s: float = 5.0
    """A peer that sends more than an engine can is not listened to for this long."""


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
    """Something about the stream was wrong: low-cardinality reason, and how often since it was last told."""

    reason: str
    count: int = 1


Told = Apply | Clear | Gap | StateChanged | Unreachable | Failed
"""What came of one stream."""


@dataclass(frozen=True, slots=True)
class Named:
    """What came of an engine that connected to us; `pod` and `rank` are its own words."""

    pod: str
    rank: int
    told: Told


Delivery = Told | Named


def size_of(delivery: Delivery) -> int:
    """Bytes of memory it takes, roughly."""
    told = delivery.told if isinstance(delivery, Named) else delivery
    return weight(told.batch) if isinstance(told, Apply) else _TOLD_BYTES


class Allowance:
    """Token bucket: so much a second, and so much at once. Pure."""

    __slots__ = ("_at", "_excused_until", "_left", "_limit", "_rate")

    def __init__(self, rate_and_burst: tuple[int, int], now: float) -> None:
        self._rate, self._limit = rate_and_burst
        self._left: float = self._limit
        self._at = self._excused_until = now

    def take(self, amount: int, now: float) -> bool:
        """Spend; False: that was more than there is."""
        if self._left < self._limit:
            self._left = min(self._limit, self._left + (now - self._at) * self._rate)
        elif now >= self._excused_until:
            self._left = self._limit
        self._left -= amount
        self._at = now
        return self._left >= 0

    def excuse(self, seconds: float, now: float) -> None:
        """Nobody looked for so long: what may come in that time may come at once, on top, within some seconds."""
        self.take(0, max(self._at, now - seconds))
        self._left = min(self._left + seconds * self._rate, self._limit + MAX_EXCUSED_S * self._rate)
        self._at = now
        self._excused_until = now + EXCUSE_LASTS_S


class Allowances:
    """What one peer may send."""

    __slots__ = ("blocks", "messages", "volume", "waste")

    def __init__(self, now: float) -> None:
        self.messages, self.volume = Allowance(MESSAGES_ALLOWED, now), Allowance(BYTES_ALLOWED, now)
        self.blocks, self.waste = Allowance(BLOCKS_ALLOWED, now), Allowance(WASTE_ALLOWED, now)

    def excuse(self, seconds: float, now: float) -> None:
        """Nobody looked for so long."""
        for allowance in (self.messages, self.volume, self.blocks, self.waste):
            allowance.excuse(seconds, now)
