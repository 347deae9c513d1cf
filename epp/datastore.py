"""The state of the pool: which endpoints exist and what they last said. One owner, immutable snapshots.

Core: no I/O, no clock. Sources push events into `PoolState.apply`; schedulers read `PoolState.snapshot`, which never
changes once handed out. A reader that wants the newest state asks again; nobody ever waits.

All methods run on the event loop, so there is no lock. Built for many more writes than reads: 1,000 endpoints that are
scraped 20 times a second apply 20,000 metrics a second, and a snapshot renews only the endpoints that changed since the
one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from epp.domain import Endpoint, EndpointId, EndpointMetrics


@dataclass(frozen=True, slots=True)
class EndpointsListed:
    """A source saw exactly these endpoints (level-based: what is missing is gone). Of equal ids the last wins."""

    endpoints: Sequence[Endpoint]


@dataclass(slots=True)
class MetricsScraped:
    """An endpoint's /metrics was read. Ignored where the endpoint has gone meanwhile."""

    endpoint: EndpointId
    metrics: EndpointMetrics


@dataclass(frozen=True, slots=True)
class EndpointReached:
    """Somebody listens at an endpoint's port, whatever is answered, or nobody does. Ignored where the endpoint has gone meanwhile."""

    endpoint: EndpointId
    reachable: bool


PoolEvent = EndpointsListed | MetricsScraped | EndpointReached


@dataclass(frozen=True, slots=True)
class Change:
    """Which endpoints came and went with one event.

    An endpoint that kept its id but moved to another address, port or rank is another model server: it is in both.
    """

    added: tuple[EndpointId, ...] = ()
    removed: tuple[EndpointId, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The endpoints at one moment, in the order of the source."""

    endpoints: tuple[Endpoint, ...] = ()
    """Those that may be chosen: those that take connections, as far as is known, or all where none does."""
    listed: tuple[Endpoint, ...] = ()
    """All: who may choose among some only, by a subset or by filters, and finds none of them in `endpoints`, looks for them here."""


NO_CHANGE = Change()


class PoolState:
    """Owns the endpoints of one pool."""

    def __init__(self) -> None:
        self._endpoints: dict[EndpointId, Endpoint] = {}
        self._news: dict[EndpointId, EndpointMetrics] = {}
        self._unreachable: set[EndpointId] = set()
        self._snapshot: Snapshot | None = Snapshot()

    def apply(self, event: PoolEvent) -> Change:
        """Take in one event; O(1) for metrics, O(endpoints) for a list. Tell the index and plugins what `Change` says."""
        if isinstance(event, MetricsScraped):
            if event.endpoint in self._endpoints:
                self._news[event.endpoint] = event.metrics
                self._snapshot = None
            return NO_CHANGE
        if isinstance(event, EndpointReached):
            if event.endpoint in self._endpoints:
                (self._unreachable.discard if event.reachable else self._unreachable.add)(event.endpoint)
                self._snapshot = None
            return NO_CHANGE
        return self._replace(event.endpoints)

    @property
    def reachable(self) -> int:
        """How many endpoints take connections, as far as is known; 0 where none does, although all may be chosen then."""
        return len(self._endpoints) - len(self._unreachable)

    def snapshot(self) -> Snapshot:
        """The pool now. Free when nothing changed since the last call."""
        if self._snapshot is None:
            self._renew()
            listed = endpoints = tuple(self._endpoints.values())
            if self._unreachable:
                # Where none can be reached the fault may be ours: the data plane tries for itself.
                endpoints = tuple(endpoint for endpoint in listed if endpoint.id not in self._unreachable) or listed
            self._snapshot = Snapshot(endpoints, listed)
        return self._snapshot

    def _replace(self, listed: Sequence[Endpoint]) -> Change:
        self._renew()
        old = self._endpoints
        new = {endpoint.id: endpoint for endpoint in listed}
        stays = {key for key, endpoint in new.items() if key in old and _same_server(old[key], endpoint)}
        self._endpoints = {key: _with_metrics(endpoint, old[key].metrics) if key in stays else endpoint for key, endpoint in new.items()}
        self._unreachable &= stays
        self._snapshot = None
        return Change(added=tuple(key for key in new if key not in stays), removed=tuple(key for key in old if key not in stays))

    def _renew(self) -> None:
        """Bring the scraped metrics into the endpoints; overwriting keeps a dict's order."""
        endpoints = self._endpoints
        for key, metrics in self._news.items():
            endpoints[key] = _with_metrics(endpoints[key], metrics)
        self._news.clear()


def _same_server(a: Endpoint, b: Endpoint) -> bool:
    return a.address == b.address and a.port == b.port and a.rank == b.rank


def _with_metrics(endpoint: Endpoint, metrics: EndpointMetrics) -> Endpoint:
    # dataclasses.replace costs three times as much, and this runs for every scrape.
    return Endpoint(endpoint.id, endpoint.address, endpoint.port, endpoint.labels, endpoint.rank, metrics)
