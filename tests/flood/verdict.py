"""What a flood proves: what it cost the picker, and whether anybody but the one who floods lost anything. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

MAX_GROWTH_BYTES: Final = 64 << 20
"""Of the picker's resident memory, from before the flood to its highest during and after it."""

MAX_LAG_S: Final = 1.0
"""From a decision until the other pods' events tell that its prompt is stored: queue, prefill and event together."""


@dataclass(slots=True)
class Phase:
    """A time of one kind of garbage; the first is without any."""

    kind: str
    seconds: float
    messages: int = 0
    bytes: int = 0
    heard_s: float = 0.0
    replays: int = 0
    requests: int = 0
    lost: list[str] = field(default_factory=list)
    """What became of requests that were not answered as they should."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, sorted."""
    resident_before: int = 0
    resident_highest: int = 0
    expected_ends: int = 0
    """Requests served by the other pods, each of which stores a block."""
    ends: Mapping[float, int] = field(default_factory=dict)
    """Prefills whose end was seen, by the bound of their bucket, cumulated; seconds."""
    errors: Counter[str] = field(default_factory=Counter)
    """Counted by the picker, by reason."""
    others_gaps: int = 0
    others_unheard: int = 0
    """Other pods whose stream is not live."""

    @property
    def growth(self) -> int:
        """Bytes."""
        return self.resident_highest - self.resident_before

    @property
    def lag_s(self) -> float:
        """The bucket that holds the slowest; infinite where one was not seen at all."""
        return next((bound for bound, count in sorted(self.ends.items()) if count >= self.expected_ends), float("inf"))


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold in every phase."""

    name: str
    passed: bool


def checks(phase: Phase) -> Sequence[Check]:
    """All of them."""
    quiet = not phase.messages
    return (
        Check("no request lost", phase.requests > 0 and not phase.lost),
        Check(f"at most {MAX_GROWTH_BYTES >> 20} MiB more", quiet or phase.growth <= MAX_GROWTH_BYTES),
        Check(f"the other pods' events within {MAX_LAG_S:g} s", phase.lag_s <= MAX_LAG_S),
        Check("the other pods' streams whole", not phase.others_gaps and not phase.others_unheard),
        Check("counted", quiet or bool(phase.errors)),
    )


def render(phases: Sequence[Phase]) -> str:
    """A table with a row a phase, and what did not hold."""
    head = ("", "sent/s", "MiB/s", "heard", "requests", "lost", "p50/p99", "events within", "memory", "counted")
    rows = [head, *(_row(phase) for phase in phases)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "   ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    for phase in phases:
        lines += [f"FAILED with {phase.kind}: {check.name}" for check in checks(phase) if not check.passed]
        lines += [f"{phase.kind}: {lost}" for lost in phase.lost[:5]]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _row(phase: Phase) -> Sequence[str]:
    heard = phase.heard_s or 1.0
    return (
        phase.kind,
        f"{phase.messages / heard:,.0f}",
        f"{phase.bytes / heard / (1 << 20):,.0f}",
        f"{phase.heard_s:.1f} of {phase.seconds:.0f} s",
        f"{phase.requests:,}",
        f"{len(phase.lost):,}",
        "/".join(f"{1e3 * phase.latencies[int(share * (len(phase.latencies) - 1))]:.0f}" for share in (0.5, 0.99)) + " ms"
        if phase.latencies
        else "",
        f"{phase.lag_s:g} s",
        f"{phase.growth / (1 << 20):+.1f} MiB",
        ", ".join(f"{count:,} {reason}" for reason, count in phase.errors.most_common(4)),
    )
