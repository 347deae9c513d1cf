"""prefix-cache-scorer: the more of the prompt an endpoint holds in its KV cache, the better (spec/plugins.md 5).

Blocks outside GPU memory count as much as their medium's weight (kvCacheBackendConfigs), exactly. Stateless: a prefix producer finds
the matches. Without tokens there are none, and every endpoint scores 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from epp.domain import Endpoint
from epp.plugins.aligned import aligned
from epp.scheduling.interfaces import Cycle, DataKey, prefix_match_key
from epp.scheduling.params import Between, ReadsPrefixMatches
from epp.scheduling.registry import Collaborators, PluginType, Role

DEFAULT_PRODUCER = "approx-prefix-cache-producer"

_TO_APPROX = f"this is a parameter of {DEFAULT_PRODUCER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheParams(ReadsPrefixMatches):
    """Parameters of prefix-cache-scorer."""

    match_length_weight: Annotated[float, Between(0, 1)] = 0.0
    """Share of the score that rates the length of the match instead of its ratio to the prompt."""
    match_length_scale_tokens: int = 8192
    """Match length that counts in full."""

    MOVED: ClassVar[dict[str, str]] = {
        "hashBlockSize": f"{_TO_APPROX}, called blockSizeTokens there",
        "blockSize": _TO_APPROX,
        "blockSizeTokens": _TO_APPROX,
        "autoTune": _TO_APPROX,
        "maxPrefixBlocksToMatch": _TO_APPROX,
        "lruCapacityPerServer": _TO_APPROX,
    }

    def __post_init__(self) -> None:
        if self.match_length_weight > 0 and self.match_length_scale_tokens <= 0:
            raise ValueError("matchLengthScaleTokens: must be above 0 where matchLengthWeight is")


class PrefixCacheScorer:
    """(1 - w) x matched / total + w x min(1, matched tokens / scale)^2."""

    def __init__(self, name: str, params: PrefixCacheParams, collaborators: Collaborators) -> None:
        self.name = name
        self._key = prefix_match_key(params.prefix_match_info_producer_name or DEFAULT_PRODUCER)
        self._weight = params.match_length_weight
        self._scale = params.match_length_scale_tokens

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (self._key,)

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        match = cycle.get(self._key)
        if match is None or match.total_blocks == 0:
            return [0.0] * len(candidates)
        blocks, total = aligned(cycle, candidates, match.worth), match.total_blocks
        if self._weight == 0.0:
            return [min(1.0, matched / total) for matched in blocks]
        of_ratio, of_length, scale = 1.0 - self._weight, self._weight, match.block_size / self._scale
        return [of_length * min(1.0, matched * scale) ** 2 + of_ratio * min(1.0, matched / total) for matched in blocks]


PLUGIN = PluginType("prefix-cache-scorer", PrefixCacheParams, PrefixCacheScorer, frozenset((Role.SCORER,)), reads_bodies=False)
