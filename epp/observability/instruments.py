"""Counters, gauges and histograms that cost a request next to nothing; prometheus_client puts them on the page.

prometheus_client's own lock every update, and its histograms walk through their buckets: with fifteen updates a request
that was a tenth of the picker's CPU. Here one thread updates, the event loop's, and the metrics server's thread only reads:
each number it reads is whole, and numbers of one update may be a page apart.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

_INFINITY: Final = float("inf")


class Counter:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count."""
        self.value += amount


class Gauge:
    """One series of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self) -> None:
        """One more."""
        self.value += 1.0

    def dec(self) -> None:
        """One less."""
        self.value -= 1.0

    def set(self, value: float) -> None:
        """What it is now."""
        self.value = float(value)


class Histogram:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper bounds, rising, the last one infinite."""
        self.bounds = bounds
        self.counts = [0] * len(bounds)
        """By bucket, each value in one of them."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """A value; it belongs to the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


_S = TypeVar("_S", Counter, Gauge, Histogram)


class Family(Generic[_S]):
    """All series of one name."""

    def __init__(self, kind: str, name: str, help_text: str, labels: Sequence[str], make: Callable[[], _S]) -> None:
        """Use `counter`, `gauge` or `histogram`."""
        self._kind = kind
        self._name = name
        self._help = help_text
        self._label_names = tuple(labels)
        self._make: Callable[[], _S] = make
        self._series: dict[tuple[str, ...], _S] = {}

    def labels(self, *values: str) -> _S:
        """The series with these label values, made when it is asked for first. Raises ValueError for too few or too many."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self._label_names):
                raise ValueError(f"{self._name} has the labels {', '.join(self._label_names)}")
            series = self._series[values] = self._make()
        return series

    def remove(self, *values: str) -> None:
        """Forget a series, if there is one."""
        self._series.pop(values, None)

    def collect(self) -> Metric:
        """The family as it is now; may be called from another thread."""
        metric = Metric(self._name.removesuffix("_total") if self._kind == "counter" else self._name, self._help, self._kind)
        for values, series in tuple(self._series.items()):
            labels = dict(zip(self._label_names, values, strict=True))
            for suffix, more, value in _samples(series):
                metric.add_sample(metric.name + suffix, {**labels, **more}, value)
        return metric


def _samples(series: Counter | Gauge | Histogram) -> Iterable[tuple[str, dict[str, str], float]]:
    """Suffix of the name, further labels, value."""
    if isinstance(series, Counter):
        yield "_total", {}, series.value
    elif isinstance(series, Gauge):
        yield "", {}, series.value
    else:
        total = 0
        for bound, count in zip(series.bounds, tuple(series.counts), strict=True):
            total += count
            le = floatToGoString(bound)  # type: ignore[no-untyped-call]  # prometheus_client types most, but not this
            yield "_bucket", {"le": le}, float(total)
        yield "_count", {}, float(total)
        yield "_sum", {}, series.sum


def counter(name: str, help_text: str, labels: Sequence[str]) -> Family[Counter]:
    """`name` ends in _total."""
    return Family("counter", name, help_text, labels, Counter)


def gauge(name: str, help_text: str, labels: Sequence[str]) -> Family[Gauge]:
    """A value that goes up and down."""
    return Family("gauge", name, help_text, labels, Gauge)


def histogram(name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]) -> Family[Histogram]:
    """`buckets` are upper bounds without the infinite one."""
    bounds = (*buckets, _INFINITY)
    return Family("histogram", name, help_text, labels, lambda: Histogram(bounds))
