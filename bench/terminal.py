"""A run as text for a terminal. Pure."""

from collections.abc import Iterable, Sequence

from bench.figures import chunk_costs, goals
from bench.records import LONG, DirectRow, EventsRow, MemoryRow, Results, Row, Spread, Step

_RULE = "─"
Cells = tuple[str, ...]


def render(results: Results) -> str:
    """Everything, ending with a newline."""
    calibration = results.calibration.median
    parts = [f"calibration: json.loads of the 220 KB body takes {_us(calibration)}; times are also given as multiples of it (x cal)"]
    if results.steps:
        parts.append(_table("Steps, run alone", ("", "CPU", "x cal", "±"), _steps(results.steps, calibration)))
    if results.held:
        parts.append(_table("Memory held", ("", ""), ((what, _bytes(held)) for what, held in results.held.items())))
    if results.requests:
        head: Cells = ("", "", "CPU a request", "x cal", "Envoy's own", "epp/Envoy", "±", "requests/s")
        parts.append(_table("Requests through a real Envoy, 32 at a time", head, _requests(results.requests, calibration)))
    if results.answers:
        head = ("end of an answer by", "", "a request", "Envoy's own", "messages", "one more chunk", "Envoy's own", "epp/Envoy", "±")
        parts.append(_table("Answers of 100 chunks", head, _answers(results)))
    if results.events:
        head = ("", "blocks/s stored", "its CPU", "a block", "requests", "p50", "p90", "p99")
        parts.append(_table("100 pods publish KV events at once, beside 4 connections through Envoy", head, _events(results.events)))
    if results.direct:
        parts.append(_table("Driven directly, without Envoy", ("", "", "requests/s", "±", "its CPU"), _direct(results.direct)))
    if results.memory:
        parts.append(_table("Memory of an open stream", ("", "a stream", "±", "before"), _memory(results.memory)))
    if found := goals(results):
        parts.append(
            "Goals\n" + "\n".join(f"  {'PASS' if g.passed else 'MISS'}  {g.text}: {g.measured:.2f} (at most {g.limit:g})" for g in found)
        )
    return "\n\n".join(parts) + "\n"


def _bytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size:,.0f} B"


def _steps(steps: Sequence[Step], calibration: float) -> Iterable[Cells]:
    for step in steps:
        yield step.name, _us(step.seconds.median), f"{step.seconds.median / calibration:.2f}", _percent(step.seconds)


def _requests(rows: Sequence[Row], calibration: float) -> Iterable[Cells]:
    for i, row in enumerate(rows):
        first = i == 0 or (row.work, row.workload) != (rows[i - 1].work, rows[i - 1].workload)
        cpu = row.picker_cpu
        yield (
            f"{row.work.value}, {row.workload}" if first else "",
            name(row),
            _us(cpu.median),
            f"{cpu.median / calibration:.2f}",
            _us(row.envoy_cpu.median),
            f"{row.ratio.median:.2f}",
            _percent(row.ratio),
            f"{row.rate:,.0f}",
        )


def _answers(results: Results) -> Iterable[Cells]:
    long = {(row.picker, row.responses): row for row in results.answers if row.workload == LONG}
    before = ""
    for row, cost in ((long[cost.picker, cost.responses], cost) for cost in chunk_costs(results)):
        label, before = ("" if cost.responses == before else cost.responses), cost.responses
        through = cost.messages > 0
        yield (
            label,
            cost.picker,
            _us(row.picker_cpu.median),
            _us(row.envoy_cpu.median),
            f"{row.messages:.1f}",
            _us(cost.picker_cpu.median) if through else "none",
            _us(cost.envoy_cpu.median),
            f"{cost.ratio.median:.2f}" if through else "",
            _percent(cost.ratio) if through else "",
        )


def _events(rows: Sequence[EventsRow]) -> Iterable[Cells]:
    quiet = next((min(row.share) for row in rows if not row.per_second), 0.0)
    for row in rows:
        blocks, share = Spread(tuple(map(float, row.blocks))).median, Spread(tuple(row.share)).median
        events_cpu = Spread(tuple(row.cpu_seconds)).median * (1 - quiet / share)
        yield (
            f"{row.per_second:g} times a second" if row.per_second else "never",
            f"{blocks / row.seconds:,.0f}",
            f"{share:.0%}",
            _us(events_cpu / blocks) if blocks else "",
            f"{sum(map(len, row.latencies)):,}",
            *(f"{row.latency(share).median * 1e3:.1f} ms" for share in (0.5, 0.9, 0.99)),
        )


def _direct(rows: Sequence[DirectRow]) -> Iterable[Cells]:
    for i, row in enumerate(rows):
        first = i == 0 or row.work is not rows[i - 1].work
        rates, busy = Spread(tuple(row.rates)), Spread(tuple(row.busy)).median
        note = "" if busy > 0.85 else " (not the limit)"
        yield f"{row.work.value}, {row.workload}" if first else "", row.picker, f"{rates.median:,.0f}", _percent(rates), f"{busy:.0%}{note}"


def _memory(rows: Sequence[MemoryRow]) -> Iterable[Cells]:
    for row in rows:
        each = Spread(tuple(row.bytes_each))
        yield (
            f"{row.picker}, {row.streams:,} open",
            f"{each.median / 1024:.1f} KiB",
            _percent(each),
            f"{row.idle_bytes / (1 << 20):.0f} MiB",
        )


def name(row: Row) -> str:
    """What to call the picker of a row."""
    return f"{row.picker}, TLS" if row.tls else row.picker


def _table(title: str, head: Cells, rows: Iterable[Cells]) -> str:
    """Text columns first, figures flush right."""
    lines = [head, *rows]
    texts = 2 if len(head) > 4 else 1
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    drawn = [
        "  ".join(f"{cell:<{w}}" if i < texts else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join((title, drawn[0].rstrip(), _RULE * len(drawn[0]), *(line.rstrip() for line in drawn[1:])))


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-4 else f"{seconds * 1e6:,.0f} us"


def _percent(figure: Spread) -> str:
    return f"{figure.spread:.0%}"
