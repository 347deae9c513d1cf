"""Small SVG drawings for the page: bars, bars of pods, dots over time. Pure: returns markup that uses the page's CSS classes.

Class `m-precise`, `m-load` and `m-round-robin` carry the colour of a mode, so that light and dark are the style sheet's business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 460
_LABEL = 96
_VALUE = 64
_ROW = 30


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: a label, how long, what it says, where its mark stands."""

    label: str
    css: str
    share: float
    """Of the width, 0..1."""
    value: str
    mark: float | None = None
    """Position of a tick, 0..1."""


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars, one a row."""
    room = WIDTH - _LABEL - _VALUE
    parts = []
    for i, row in enumerate(rows):
        y = i * _ROW
        length = max(2.0, room * row.share)
        parts.append(f'<text class="label" x="{_LABEL - 10}" y="{y + 19}" text-anchor="end">{escape(row.label)}</text>')
        parts.append(f'<rect class="track" x="{_LABEL}" y="{y + 5}" width="{room}" height="20" rx="4"/>')
        parts.append(f'<rect class="{row.css}" x="{_LABEL}" y="{y + 5}" width="{length:.1f}" height="20" rx="4"/>')
        if row.mark is not None:
            x = _LABEL + room * row.mark
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 1}" y2="{y + 29}"/>')
        parts.append(f'<text class="value" x="{_LABEL + room + 8}" y="{y + 19}">{escape(row.value)}</text>')
    return _svg(WIDTH, len(rows) * _ROW, title, parts)


@dataclass(frozen=True, slots=True)
class Stack:
    """One pod: a label, and two parts of a whole."""

    label: str
    solid: float
    pale: float
    value: str


def stacks(rows: Sequence[Stack], css: str, most: float, title: str) -> str:
    """Horizontal bars of two parts: solid, then pale; `most` is the full width."""
    width, label, value = 300, 52, 88
    room = width - label - value
    parts = []
    for i, row in enumerate(rows):
        y = i * 24
        solid, pale = room * row.solid / most, room * row.pale / most
        parts.append(f'<text class="label" x="{label - 8}" y="{y + 16}" text-anchor="end">{escape(row.label)}</text>')
        parts.append(f'<rect class="{css}" x="{label}" y="{y + 3}" width="{solid:.1f}" height="17"/>')
        parts.append(f'<rect class="{css} pale" x="{label + solid:.1f}" y="{y + 3}" width="{pale:.1f}" height="17"/>')
        parts.append(f'<text class="value small" x="{label + solid + pale + 6:.1f}" y="{y + 16}">{escape(row.value)}</text>')
    return _svg(width, len(rows) * 24, title, parts)


@dataclass(frozen=True, slots=True)
class Dot:
    """One request: when, how long, and what it is called."""

    x: float
    y: float
    name: str


def dots(points: Sequence[Dot], css: str, x_most: float, y_most: float, title: str) -> str:
    """Dots over time, both axes linear from 0, in seconds; a dot above `y_most` sits on the edge."""
    width, height, left, bottom, top = 300, 190, 34, 22, 8
    room_x, room_y = width - left - 6, height - bottom - top
    parts = []
    step = nice_step(y_most)
    for i in range(int(y_most / step + 1e-9) + 1):
        y = height - bottom - room_y * i * step / y_most
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 6}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{i * step:g} s</text>')
    step = nice_step(x_most)
    for i in range(int(x_most / step + 1e-9) + 1):
        x = left + room_x * i * step / x_most
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{i * step:g} s</text>')
    for point in points:
        x = left + room_x * point.x / x_most
        y = height - bottom - room_y * min(1.0, point.y / y_most)
        parts.append(f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{escape(point.name)}</title></circle>')
    return _svg(width, height, title, parts)


def nice_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that about four steps reach `most`."""
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
