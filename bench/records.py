"""What is measured: the records every other module fills or reads. Pure data; seconds, bytes and counts unless a name says more."""

import statistics
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

CHUNKS = 100
LONG, SHORT = f"{CHUNKS}-chunk answer", "1-chunk answer"

UNDER_LOAD = "while 220 KB prompts arrive, 32 at a time"
"""What a picker's memory is `Results.held` for, after its name."""


class Work(Enum):
    """How much there is to decide (`configs` has the EndpointPickerConfig of each)."""

    BARE = "transport"
    """Everything but the decision: messages, JSON, books, metrics, access log, and an endpoint drawn at random."""
    DEFAULT = "default"
    """Queue and KV-cache use of each endpoint, as scraped."""
    PRECISE = "precise"
    """Token ids of the prompt, prefixes in the index, load and requests under way."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of an even number of values, the mean of the middle two."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Largest minus smallest, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One picker and its Envoy under load for a while."""

    seconds: float
    requests: int
    picker_cpu: float
    """Seconds of CPU, user and system, of all threads."""
    envoy_cpu: float
    messages: int
    """ext_proc messages that Envoy sent."""


@dataclass(slots=True)
class Row:
    """One workload on one picker; the samples of the rows of a block are taken in turns."""

    work: Work
    workload: str
    """ "5 KB", "220 KB", "100-chunk answer", ..."""
    picker: str
    tls: bool
    responses: str
    """How the picker learns of the end of an answer: a value of epp.testing.bootstrap.Responses."""
    samples: list[Sample] = field(default_factory=list)

    @property
    def picker_cpu(self) -> Spread:
        """Seconds of the picker's CPU a request."""
        return Spread(tuple(sample.picker_cpu / sample.requests for sample in self.samples))

    @property
    def envoy_cpu(self) -> Spread:
        """Seconds of Envoy's CPU a request."""
        return Spread(tuple(sample.envoy_cpu / sample.requests for sample in self.samples))

    @property
    def ratio(self) -> Spread:
        """The picker's CPU as a share of its Envoy's, sample by sample."""
        return Spread(tuple(sample.picker_cpu / sample.envoy_cpu for sample in self.samples))

    @property
    def messages(self) -> float:
        """ext_proc messages a request that Envoy sent."""
        return statistics.median(sample.messages / sample.requests for sample in self.samples)

    @property
    def rate(self) -> float:
        """Requests a second, with everything else on the same machine."""
        return statistics.median(sample.requests / sample.seconds for sample in self.samples)


@dataclass(slots=True)
class DirectRow:
    """A picker driven without Envoy until its core is busy."""

    work: Work
    workload: str
    picker: str
    rates: list[float] = field(default_factory=list)
    """Requests a second."""
    busy: list[float] = field(default_factory=list)
    """The picker's CPU seconds a second of the same run; well below 1, something else was the limit."""


@dataclass(slots=True)
class MemoryRow:
    """What an open stream costs: a request that was routed and whose answer is under way."""

    picker: str
    streams: int
    bytes_each: list[float] = field(default_factory=list)
    idle_bytes: int = 0
    """Resident memory before."""


@dataclass(slots=True)
class EventsRow:
    """A fleet whose pods all publish KV events at once, so often."""

    per_second: float
    """Times a second; 0: never."""
    seconds: float
    """Of a sample."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Of the picker in a sample without requests."""
    blocks: list[int] = field(default_factory=list)
    """Stored, and as many removed, in the same sample by all pods."""
    share: list[float] = field(default_factory=list)
    """Of a core in the same sample."""
    latencies: list[list[float]] = field(default_factory=list)
    """Seconds of the requests of a sample beside the same events, sorted."""

    def latency(self, share: float) -> Spread:
        """The one that so large a share of the requests stays below, sample by sample."""
        return Spread(tuple(found[int(share * (len(found) - 1))] for found in self.latencies))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a request, run alone in one process."""

    name: str
    seconds: Spread


# Rows of the index that have goals: what is printed, its limit, and the factor from seconds to the limit's unit.
STEP_GOALS: Final = {
    "a block of an event decoded and applied": ("blocks of events applied, 150,000 a second: us a block", 1e6 / 150_000, 1e6),
    "longest slice of events, table growing to 200,000 blocks": ("longest callback while an endpoint's table grows: ms", 5.0, 1e3),
    "longest slice, an endpoint of 100,000 blocks leaves": ("longest callback while an endpoint of 100,000 blocks leaves: ms", 5.0, 1e3),
    "a prompt of 100,000 tokens looked up, 256 endpoints": ("a prompt of 100,000 tokens looked up over 256 endpoints: ms", 5.0, 1e3),
    "the same, its second half in CPU memory": ("the same, its second half in CPU memory: ms", 5.0, 1e3),
}
BLOCK_ROWS: Final = (
    "a block in the index, held by one endpoint",
    "the same for each of eight that hold it",
    "held by one, after all of them have changed three times",
)
BLOCK_GOAL: Final = 120.0
"""Bytes a (block, endpoint)."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Something we aim at, and what was measured."""

    text: str
    limit: float
    measured: float

    @property
    def passed(self) -> bool:
        """At or below the limit."""
        return self.measured <= self.limit


@dataclass(slots=True)
class Results:
    """One run."""

    calibration: Spread = field(default=Spread(()))
    """Seconds of one json.loads of the 220 KB body, taken before each block: the yardstick for absolute times."""
    requests: list[Row] = field(default_factory=list)
    answers: list[Row] = field(default_factory=list)
    direct: list[DirectRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    events: list[EventsRow] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    """Bytes of memory, by what for."""
    facts: dict[str, str] = field(default_factory=dict)
