"""queue-scorer: the fewer requests wait in the engine, the better (spec/plugins.md 5). Stateless."""

from collections.abc import Sequence
from typing import Any

from epp.domain import Endpoint
from epp.plugins.datalayer.core_metrics_extractor import WAITING
from epp.scheduling.interfaces import Cycle, DataKey
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators, PluginType, Role


class QueueScorer:
    """Min-max over the candidates: the shortest queue 1, the longest 0; all 1 where they are equal."""

    def __init__(self, name: str, params: NoParams, collaborators: Collaborators) -> None:
        self.name = name

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (WAITING,)

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        waiting = [endpoint.metrics.waiting for endpoint in candidates]
        longest, shortest = max(waiting, default=0), min(waiting, default=0)
        spread = longest - shortest
        if spread == 0:
            return [1.0] * len(candidates)
        return [(longest - queue) / spread for queue in waiting]


PLUGIN = PluginType("queue-scorer", NoParams, QueueScorer, frozenset((Role.SCORER,)), reads_bodies=False)
