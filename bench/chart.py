"""A run as one SVG file that needs nothing else, in light and dark. Pure: returns markup.

A card for each workload, with a scale of its own: Envoy's CPU first, then each picker's. The number is what the bar shows; the
share of Envoy's CPU stands behind it. A mark shows where a goal is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bench.figures import FAST, chunk_costs, envoys_request
from bench.records import DirectRow, Results, Row, Spread, Work
from bench.terminal import name

_CARD, _GAP, _PAD, _LINE = 470, 20, 18, 26
_LABEL, _VALUE = 104, 118
_ROOM = _CARD - 2 * _PAD - _LABEL - _VALUE
_TOP = 84
_LABEL_LETTERS = 14

_STYLE = """
svg { font-family: system-ui, "Segoe UI", Roboto, sans-serif; color-scheme: light dark; }
.page { fill: #f6f5f1; } .card { fill: #ffffff; stroke: #dedbd2; } .track { fill: #efede6; }
text { fill: #1d2125; font-size: 14px; } .soft { fill: #5d666e; } .title { font-size: 23px; font-weight: 700; } .head { font-weight: 600; }
.envoy { fill: #8a8f98; } .epp { fill: #0b7a6f; } .tls { fill: #0b7a6f; opacity: .55; } .other { fill: #b9770e; } .mark { stroke: #c2282d; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  .page { fill: #14171a; } .card { fill: #1d2226; stroke: #333a40; } .track { fill: #272d32; }
  text { fill: #e8e6e1; } .soft { fill: #9aa4ac; }
  .envoy { fill: #7d858e; } .epp, .tls { fill: #35b8a7; } .other { fill: #e0a33e; } .mark { stroke: #ff7a72; }
}
"""

WORKS = {
    Work.BARE: "everything but the decision",
    Work.DEFAULT: "queues and KV-cache use",
    Work.PRECISE: "exact tokens and prefixes",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a card."""

    label: str
    css: str
    length: float
    text: str
    mark: float | None = None
    """Where a goal is, on the scale of `length`."""


@dataclass(frozen=True, slots=True)
class Card:
    """One workload."""

    title: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """In pixels, like all lengths here."""
        return 2 * _PAD + 24 + _LINE * len(self.bars)


def render(results: Results) -> str:
    """The file's text."""
    cards = [*_requests(results), *_chunks(results), *_direct(results.direct)]
    parts: list[str] = []
    y = _TOP
    for left in range(0, len(cards), 2):
        pair = cards[left : left + 2]
        for column, card in enumerate(pair):
            parts.extend(_card(card, _GAP + column * (_CARD + _GAP), y))
        y += max(card.height for card in pair) + _GAP
    width = 2 * _CARD + 3 * _GAP
    facts = ", ".join(f"{key} {value}" for key, value in results.facts.items())
    head = (
        f'<text class="title" x="{_GAP}" y="38">CPU of the endpoint picker, beside the Envoy it serves</text>'
        f'<text class="soft" x="{_GAP}" y="62">A red mark is a goal, x the share of what Envoy uses. {escape(facts)}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" role="img" aria-label="CPU a request of epp and of Envoy">'
        f'<style>{_STYLE}</style><rect class="page" width="{width}" height="{y}"/>{head}{"".join(parts)}</svg>\n'
    )


def _requests(results: Results) -> Iterator[Card]:
    seen = dict.fromkeys((row.work, row.workload) for row in results.requests)
    for work, workload in seen:
        rows = [row for row in results.requests if (row.work, row.workload) == (work, workload)]
        envoy = rows[0].envoy_cpu.median
        goal = 0.5 * envoy if (work, workload) == (Work.BARE, "5 KB") else None
        bars = [Bar("Envoy itself", "envoy", envoy, _us(envoy))]
        bars += [
            Bar(name(row), _css(row), row.picker_cpu.median, f"{_us(row.picker_cpu.median)}  {row.ratio.median:.2f} x", _goal(row, goal))
            for row in rows
        ]
        yield Card(f"A {workload} request: {WORKS[work]}", bars)


def _goal(row: Row, goal: float | None) -> float | None:
    return goal if row.picker == FAST and not row.tls else None


def _chunks(results: Results) -> Iterator[Card]:
    costs = [cost for cost in chunk_costs(results) if cost.messages > 0]
    if costs:
        envoy, request = costs[0].envoy_cpu.median, envoys_request(results, FAST)
        bars = [Bar("Envoy itself", "envoy", envoy, _us(envoy))]
        for cost in costs:
            mine = cost.picker_cpu.median
            mark = 0.15 * request if cost.picker == FAST and request is not None else None
            bars.append(Bar(cost.picker, _colour(cost.picker), mine, f"{_us(mine)}  {cost.ratio.median:.2f} x", mark))
        bars.append(Bar("our default", "epp", 0.0, "nothing"))
        yield Card("A chunk of an answer, FULL_DUPLEX_STREAMED", bars)


def _direct(rows: Sequence[DirectRow]) -> Iterator[Card]:
    if rows:
        bars = [
            Bar(f"{row.picker}", _colour(row.picker), rate, f"{rate:,.0f} {row.work.value}")
            for row, rate in ((row, Spread(tuple(row.rates)).median) for row in rows)
        ]
        yield Card("Requests a second, one core, 5 KB (longer is better)", bars)


def _css(row: Row) -> str:
    return "tls" if row.tls and row.picker.startswith("epp ") else _colour(row.picker)


def _colour(picker: str) -> str:
    return "epp" if picker.startswith("epp ") else "other"


def _card(card: Card, x: int, y: int) -> Iterator[str]:
    longest = max(max(bar.length, bar.mark or 0.0) for bar in card.bars) or 1.0
    yield f'<rect class="card" x="{x}" y="{y}" width="{_CARD}" height="{card.height}" rx="10"/>'
    yield f'<text class="head" x="{x + _PAD}" y="{y + _PAD + 10}">{escape(card.title)}</text>'
    left = x + _PAD + _LABEL
    for i, bar in enumerate(card.bars):
        top = y + _PAD + 24 + i * _LINE
        length = _ROOM * bar.length / longest
        yield f'<text class="soft" x="{left - 8}" y="{top + 17}" text-anchor="end">{escape(bar.label[:_LABEL_LETTERS])}</text>'
        yield f'<rect class="track" x="{left}" y="{top + 4}" width="{_ROOM}" height="18" rx="4"/>'
        yield f'<rect class="{bar.css}" x="{left}" y="{top + 4}" width="{max(2.0, length):.1f}" height="18" rx="4"/>'
        if bar.mark is not None:
            at = left + _ROOM * bar.mark / longest
            yield f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top + 1}" y2="{top + 25}"/>'
        yield f'<text x="{left + _ROOM + 8}" y="{top + 17}">{escape(bar.text)}</text>'


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"
