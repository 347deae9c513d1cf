"""no-hit-lru-scorer: spreads prompts nobody holds over the endpoints that were given one longest ago (spec/plugins.md 5).

Without it, cold prompts follow the other scorers and pile up where the cache already is full. Owns one LRU of endpoints,
changed only by `decided` and `endpoint_removed`; event loop only.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from epp.domain import Decision, Endpoint, EndpointId
from epp.plugins.aligned import aligned
from epp.plugins.computes import computing
from epp.plugins.scorers.prefix_cache import DEFAULT_PRODUCER
from epp.scheduling.interfaces import Cycle, DataKey, prefix_match_key
from epp.scheduling.params import NO_EFFECT, ReadsPrefixMatches
from epp.scheduling.registry import Collaborators, PluginType, Role

DEFAULT_SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NoHitLruParams(ReadsPrefixMatches):
    """Parameters of no-hit-lru-scorer."""

    lru_size: int = DEFAULT_SIZE
    """Endpoints remembered; not positive: the default, as in llm-d."""
    prefix_plugin_type: Annotated[str, NO_EFFECT] = ""
    prefix_plugin_name: Annotated[str, NO_EFFECT] = ""


class NoHitLruScorer:
    """0.5 for all where somebody holds a block; else never used endpoints first, then those used longest ago."""

    def __init__(self, name: str, params: NoHitLruParams, collaborators: Collaborators) -> None:
        self.name = name
        self._key = prefix_match_key(params.prefix_match_info_producer_name or DEFAULT_PRODUCER)
        self._cold_key: DataKey[bool] = DataKey("NoHitLruCold", name)
        self._size = params.lru_size if params.lru_size > 0 else DEFAULT_SIZE
        self._used: OrderedDict[EndpointId, None] = OrderedDict()

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (self._key,)

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        match = cycle.get(self._key)
        cold = match is None or not any(aligned(cycle, candidates, match.matched_blocks))
        cycle.put(self._cold_key, cold)
        if not cold:
            return [0.5] * len(candidates)
        if len(candidates) == 1:
            return [1.0]
        return self._by_age(candidates)

    def _by_age(self, candidates: Sequence[Endpoint]) -> list[float]:
        """1 - rank / (n - 1). A used endpoint's rank counts every remembered one that is older, candidate or not."""
        age = {endpoint: position for position, endpoint in enumerate(self._used)}
        unused = sum(endpoint.id not in age for endpoint in candidates)
        last, scores, next_unused = len(candidates) - 1, [], 0
        for endpoint in candidates:
            position = age.get(endpoint.id)
            if position is None:
                scores.append(1.0 - next_unused / last)
                next_unused += 1
            else:
                scores.append(max(0.0, 1.0 - (unused + position) / last))
        return scores

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        if not cycle.get(self._cold_key):
            return
        for endpoint in computing(decision):
            self._used[endpoint] = None
            self._used.move_to_end(endpoint)
        while len(self._used) > self._size:
            self._used.popitem(last=False)

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        self._used.pop(endpoint, None)


PLUGIN = PluginType("no-hit-lru-scorer", NoHitLruParams, NoHitLruScorer, frozenset((Role.SCORER,)), reads_bodies=False)
