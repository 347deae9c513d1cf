"""Metric families with two names: the current one and the one dashboards of older pickers ask for.

A family is counted once, under its current name; its deprecated twin, with fewer labels, is computed when the page is
asked for (spec/protocol.md 6). So a request pays for one set of series. Knows nothing of requests and endpoints.

Series change on the event loop and are read in the metrics server's thread (instruments.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from epp.observability import instruments
from epp.observability.instruments import Counter, Family, Gauge, Histogram

_S = TypeVar("_S", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Twin:
    """The deprecated name of a family, without `_total`, and those of the family's labels that it has there."""

    name: str
    labels: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Labels that are called otherwise there: current name -> old name."""


class Families(Collector):
    """Makes families and exposes them, with their twins, through one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families: list[tuple[Callable[[], Metric], Twin | None]] = []
        registry.register(self)

    def counter(self, name: str, help_text: str, labels: Sequence[str] = (), *, twin: Twin | None = None) -> Family[Counter]:
        """`name` ends in _total."""
        return self._add(instruments.counter(name, help_text, labels), twin)

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = (), *, twin: Twin | None = None) -> Family[Gauge]:
        """A value that goes up and down."""
        return self._add(instruments.gauge(name, help_text, labels), twin)

    def histogram(
        self, name: str, help_text: str, labels: Sequence[str] = (), *, buckets: Sequence[float], twin: Twin | None = None
    ) -> Family[Histogram]:
        """`buckets` are upper bounds without +Inf."""
        return self._add(instruments.histogram(name, help_text, labels, buckets), twin)

    def collect(self) -> Iterable[Metric]:
        """Called for each page, in the metrics server's thread."""
        for family_now, twin in tuple(self._families):
            family = family_now()
            yield family
            if twin is not None:
                yield _deprecated(family, twin)

    def _add(self, family: Family[_S], twin: Twin | None) -> Family[_S]:
        self._families.append((family.collect, twin))
        return family


def _deprecated(family: Metric, twin: Twin) -> Metric:
    """The family under its old name, summed over the labels that name lacks."""
    old = Metric(twin.name, f"Deprecated: use {family.name}.", family.type)
    kept = {*twin.labels, "le"}
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        labels = tuple((twin.renamed.get(key, key), value) for key, value in sample.labels.items() if key in kept)
        key = (twin.name + sample.name.removeprefix(family.name), labels)
        sums[key] = sums.get(key, 0.0) + sample.value
    for (name, labels), value in sums.items():
        old.add_sample(name, dict(labels), value)
    return old


# The label of all that have none of their own.
OTHER = "other"

# Longer than any model's name; clients choose them, and each is kept and stands on every page of metrics.
MAX_LABEL_LENGTH = 256


class LabelLimit:
    """Keeps the first so many distinct label values; what comes later, or is too long, is "other" (spec/protocol.md 6.7)."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._admitted: set[str] = set()

    def admit(self, value: str) -> str:
        """The value to use as a label; an empty one stays empty."""
        if value in self._admitted or not value:
            return value
        if len(self._admitted) >= self._limit or len(value) > MAX_LABEL_LENGTH:
            return OTHER
        self._admitted.add(value)
        return value
