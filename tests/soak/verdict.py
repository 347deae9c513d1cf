"""What a soak proves: whether each request went as planned, and whether the picker is empty and no larger afterwards. Pure."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.soak.exchange import Exchange
from tests.soak.plan import LEAVES, STREAMED, Kind, Plan, json_answer, streamed_answer

MAX_GROWTH_BYTES: Final = 8 << 20
"""Of the picker's resident memory, median against median of the two halves after the warm-up: a heap goes up and down by as much at any moment. 100
bytes a request leaked in a full soak are more."""

MIN_SAMPLES: Final = 20
"""Of memory; with fewer the beginning is held against the end."""

MAX_SETTLE_S: Final = 10.0
"""From the last request until nothing is in flight."""

MAX_MORE_FILES: Final = 4
"""Of open files of the picker after the warm-up."""

ACCESS_LOG_CALLS: Final = 1
"""Envoy's, with one worker."""

_STATUS: Final[Mapping[Kind, int]] = {Kind.ERROR: 500, Kind.REFUSED: 503, Kind.NOT_JSON: 400, Kind.TOO_LARGE: 413}
"""Of the kinds whose answer is no 200."""

_NEVER_ARRIVES: Final = frozenset((Kind.NOT_JSON, Kind.TOO_LARGE, Kind.BEFORE_BODY, Kind.IN_BODY))


def problem(plan: Plan, seen: Exchange, arrivals: int, *, headers_wait: bool = False) -> str | None:
    """What went otherwise than planned.

    `arrivals` counts how often its whole body reached a model server. `headers_wait`: headers of answers wait for the picker;
    where the model server dies meanwhile, Envoy answers 502 in its place.
    """
    if seen.hung:
        return f"hung: status {seen.status}, {len(seen.body)} bytes"
    if plan.kind in _NEVER_ARRIVES:
        if arrivals:
            return "reached a model server"
    elif arrivals > 1:
        return f"reached model servers {arrivals} times"
    if seen.left:
        return None
    if arrivals == 0 and plan.kind not in _NEVER_ARRIVES:
        return f"never reached a model server: status {seen.status}: {bytes(seen.body[:200])!r}"
    if headers_wait and plan.kind is Kind.CUT and seen.status == 502:
        return None
    status = _STATUS.get(plan.kind, 200)
    if seen.status != status:
        return f"status {seen.status} and not {status}: {bytes(seen.body[:200])!r} {seen.broken}"
    if plan.kind is Kind.CUT:
        return "came to its end" if seen.complete else None
    if not seen.complete:
        return f"cut off after {len(seen.body)} bytes, {seen.broken}"
    if (expected := _answer(plan)) is not None and seen.body != expected:
        return f"another answer: {bytes(seen.body[:200])!r}"
    return None


def _answer(plan: Plan) -> bytes | None:
    """What the model server answers; None: it is not asked, or does not."""
    if plan.kind in _NEVER_ARRIVES or plan.kind is Kind.REFUSED:
        return None
    if plan.kind in STREAMED:
        return streamed_answer(plan.number, plan.body.crc, plan.events)
    return json_answer(plan.number, plan.body.crc, plan.text)


@dataclass(slots=True)
class Footprint:
    """What a process takes when nothing is under way."""

    resident_bytes: int
    files: int


@dataclass(slots=True)
class Books:
    """What the picker and Envoy counted, when nothing is under way."""

    decided: int
    ended: Mapping[str, int]
    """By cause."""
    running: int
    streams: int
    """ext_proc streams Envoy began. What it resets at once, before anything was done about it, the picker does not count."""
    streams_open: int
    """Of these, as the picker says."""
    calls_open: int
    """gRPC calls, as Envoy says: its access log is one."""
    unknown_entries: int
    """Of the access log, that name a decision of the picker which is not open."""
    entries_dropped: int
    """Of the access log, by Envoy."""
    envoy_active: int
    """Requests under way in Envoy, from its clients and to model servers."""


@dataclass(slots=True)
class Report:
    """One soak of one transport."""

    transport: str
    requests: int
    seconds: float = 0.0
    kinds: Counter[Kind] = field(default_factory=Counter)
    left: Counter[Kind] = field(default_factory=Counter)
    """Of `kinds`, those whose client was gone before the end."""
    problems: list[str] = field(default_factory=list)
    picker_cpu_s: float = 0.0
    picker: list[Footprint] = field(default_factory=list)
    """After the warm-up, and at the end."""
    resident: list[int] = field(default_factory=list)
    """Bytes of the picker while it works, after the warm-up."""
    envoy: list[Footprint] = field(default_factory=list)
    settled_s: list[float] = field(default_factory=list)
    """How long it took until nothing was under way, after the warm-up and at the end."""
    books: Books | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    name: str
    passed: bool
    measured: str


def checks(report: Report) -> Sequence[Check]:
    """All of them."""
    return tuple(_checks(report))


def _checks(report: Report) -> Iterator[Check]:
    done = report.kinds.total()
    yield Check("every request was played", done == report.requests, f"{done:,} of {report.requests:,}")
    missing = [kind.name for kind in Kind if not report.kinds[kind]]
    yield Check("of every kind", not missing, ", ".join(missing) or f"{len(Kind)} kinds")
    yield Check("none lost: each went as planned", not report.problems, f"{len(report.problems):,} did not")
    books = report.books
    if books is None:
        yield Check("nothing is under way afterwards", False, "the picker never got empty")
        return
    settled = max(report.settled_s)
    yield Check(f"in-flight is zero within {MAX_SETTLE_S:g} s", books.running == 0 and settled <= MAX_SETTLE_S, f"{settled:.1f} s")
    ended = sum(books.ended.values())
    yield Check("each decision ended once", books.decided == ended, f"{books.decided:,} made, {ended:,} ended")
    yield Check("none by its age", not books.ended.get("aged_out"), f"{books.ended.get('aged_out', 0):,}")
    yield Check("no log entry of a closed decision", not books.unknown_entries, f"{books.unknown_entries:,}")
    yield Check("Envoy dropped no log entry", not books.entries_dropped, f"{books.entries_dropped:,}")
    nothing = not books.streams_open and books.calls_open <= ACCESS_LOG_CALLS
    yield Check("no stream is left", nothing, f"{books.streams:,} begun, {books.streams_open:,} open")
    yield Check("Envoy has nothing under way", not books.envoy_active, f"{books.envoy_active:,}")
    before, after = report.picker
    growth = _growth(report.resident) if len(report.resident) >= MIN_SAMPLES else after.resident_bytes - before.resident_bytes
    yield Check(f"memory is flat, within {_mib(MAX_GROWTH_BYTES)}", growth <= MAX_GROWTH_BYTES, f"{growth / (1 << 20):+.1f} MiB")
    yield Check("no file is left open", after.files <= before.files + MAX_MORE_FILES, f"{before.files} before, {after.files} after")


def _growth(samples: Sequence[int]) -> float:
    half = len(samples) // 2
    return statistics.median(samples[half:]) - statistics.median(samples[:half])


def render(reports: Sequence[Report]) -> str:
    """A table with a column a transport, and what did not hold."""
    rows: list[tuple[str, Sequence[str]]] = [("", [report.transport for report in reports])]
    rows += [(kind.value, [_kind(report, kind) for report in reports]) for kind in Kind]
    rows += [
        ("taken along by a dropped connection", [f"{_taken_along(report):,}" for report in reports]),
        ("requests a second", [f"{report.requests / report.seconds:,.0f}" for report in reports]),
        ("CPU of epp a request", [f"{report.picker_cpu_s / report.requests * 1e6:,.0f} us" for report in reports]),
        ("memory of epp: warm, end", [_memory(report.picker) for report in reports]),
        ("memory of Envoy: warm, end", [_memory(report.envoy) for report in reports]),
        ("decisions ended", [_ended(report) for report in reports]),
    ]
    verdicts = [checks(report) for report in reports]
    names = dict.fromkeys(check.name for found in verdicts for check in found)
    rows += [(name, [next((_check(check) for check in found if check.name == name), "") for found in verdicts]) for name in names]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(reports))]
    lines = [f"{name:<{first}}" + "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) for name, cells in rows]
    for report in reports:
        lines += [f"{report.transport}: {found}" for found in report.problems[:10]]
    return "\n".join(lines) + "\n"


def _kind(report: Report, kind: Kind) -> str:
    left = f" ({report.left[kind]:,} left)" if kind in LEAVES else ""
    return f"{report.kinds[kind]:,}{left}"


def _taken_along(report: Report) -> int:
    return sum(count for kind, count in report.left.items() if kind not in LEAVES)


def _memory(found: Sequence[Footprint]) -> str:
    return ", ".join(_mib(each.resident_bytes) for each in found)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _ended(report: Report) -> str:
    return "" if report.books is None else ", ".join(f"{count:,} {cause}" for cause, count in sorted(report.books.ended.items()))


def _check(check: Check) -> str:
    return f"{'ok' if check.passed else 'FAILED'}: {check.measured}"
