"""active-request-scorer: the fewer requests this picker has under way at an endpoint, the better (spec/plugins.md 5).

Stateless: the in-flight producer counts. Unlike queue-scorer it needs no scrape, so it sees the request before this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from epp.domain import Endpoint
from epp.plugins.aligned import aligned
from epp.plugins.producers import inflight_load
from epp.scheduling.interfaces import Cycle, DataKey, in_flight_key
from epp.scheduling.params import NO_EFFECT
from epp.scheduling.registry import Collaborators, PluginType, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRequestParams:
    """Parameters of active-request-scorer."""

    idle_threshold: int = 0
    """Up to this many requests an endpoint counts as idle: 1.0. Negative: 0."""
    max_busy_score: float = 1.0
    """Score a busy endpoint approaches from below; outside [0, 1]: 1.0, as in llm-d."""
    in_flight_load_producer_name: str = ""
    request_timeout: Annotated[str, NO_EFFECT] = ""


class ActiveRequestScorer:
    """1.0 up to the idle threshold, else (max - count) / max x maxBusyScore over the candidates."""

    def __init__(self, name: str, params: ActiveRequestParams, collaborators: Collaborators) -> None:
        self.name = name
        self._idle = max(params.idle_threshold, 0)
        self._busy = params.max_busy_score if 0.0 <= params.max_busy_score <= 1.0 else 1.0
        self._key = in_flight_key(params.in_flight_load_producer_name or inflight_load.TYPE)

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (self._key,)

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        load = cycle.get(self._key)
        if load is None:
            return [1.0] * len(candidates)
        counts = aligned(cycle, candidates, load.requests)
        idle, busiest = self._idle, max(counts, default=0)
        if busiest <= idle:
            return [1.0] * len(counts)
        return [1.0 if count <= idle else (busiest - count) / busiest * self._busy for count in counts]


PLUGIN = PluginType("active-request-scorer", ActiveRequestParams, ActiveRequestScorer, frozenset((Role.SCORER,)), reads_bodies=False)
