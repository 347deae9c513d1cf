"""One profile run: filter, score, pick. Nothing else happens here.

Holds no state between runs and knows no plugin by name. Called by Scheduler, on the event loop, synchronously.
Scores live in `list[float]` parallel to the candidates: a dict by endpoint costs almost twice as much.

What a broken plugin does to a request: a scorer is left out of the sum (a request without one opinion is still well
served); a filter or picker ends it with 500, because going on could send it to an endpoint that must not have it.
Both are told to the reporter each time.
"""

import math
from collections.abc import Sequence

from epp.domain import Endpoint, PluginScores, ProfileResult
from epp.errors import InternalError, NoneOfKindError, RequestError, ResourceExhaustedError
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle, Filter, Picker, Scorer


class Profile:
    """Named filters, weighted scorers and one picker."""

    def __init__(
        self, name: str, filters: Sequence[Filter], scorers: Sequence[tuple[Scorer, float]], picker: Picker, reporter: Reporter
    ) -> None:
        """Filters run in order. A weight is a plain factor: never normalised, and zero or negative if so configured."""
        self.name = name
        self._filters = tuple(filters)
        self._by_labels = tuple(plugin for plugin in filters if getattr(plugin, "by_labels", False))
        self._scorers = tuple(scorers)
        self._picker = picker
        self._reporter = reporter

    def run(self, cycle: Cycle) -> ProfileResult:
        """Who stayed, what everybody scored, who was chosen (spec/plugins.md 10.1).

        Cost: O(candidates x plugins). Raises ResourceExhaustedError where no candidate is left, its child NoneOfKindError where
        none would be by labels alone, InternalError where a filter or the picker is broken.
        """
        candidates = self._filter(cycle, self._filters)
        if not candidates:
            error = ResourceExhaustedError if self._filter(cycle, self._by_labels) else NoneOfKindError
            raise error("no endpoints available for the given request", dropped_reason="rejected-saturated")
        totals = [0.0] * len(candidates)
        said = [self._score(cycle, candidates, scorer, weight, totals) for scorer, weight in self._scorers]
        chosen = self._pick(cycle, candidates, totals)
        return ProfileResult(self.name, candidates, said, totals, chosen)

    def _filter(self, cycle: Cycle, filters: Sequence[Filter]) -> Sequence[Endpoint]:
        candidates = cycle.endpoints
        for plugin in filters:
            if not candidates:
                break
            try:
                candidates = plugin.filter(cycle, candidates)
            except RequestError:
                raise
            except Exception as error:
                self._reporter.plugin_failed(plugin.name, error)
                raise InternalError(f"filter {plugin.name!r} failed") from error
        return candidates

    def _score(self, cycle: Cycle, candidates: Sequence[Endpoint], scorer: Scorer, weight: float, totals: list[float]) -> PluginScores:
        """Add one scorer's opinion to the totals; what counted is kept for the decision's record."""
        try:
            scores = scorer.score(cycle, candidates)
        except Exception as error:  # noqa: BLE001  # a plugin is foreign code: whatever it raises, the request goes on
            return self._left_out(scorer, weight, len(candidates), error)
        if len(scores) != len(candidates):
            return self._left_out(scorer, weight, len(candidates), ValueError(f"{len(scores)} scores for {len(candidates)} candidates"))
        for i, score in enumerate(scores):
            if not 0.0 <= score <= 1.0:  # true for NaN as well
                score = scores[i] = _clamp(score)  # noqa: PLW2901  # the record shows what counted
            totals[i] += weight * score
        return PluginScores(scorer.name, weight, scores)

    def _left_out(self, scorer: Scorer, weight: float, candidates: int, error: Exception) -> PluginScores:
        self._reporter.plugin_failed(scorer.name, error)
        return PluginScores(scorer.name, weight, [0.0] * candidates)

    def _pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        try:
            chosen = self._picker.pick(cycle, candidates, totals)
        except RequestError:
            raise
        except Exception as error:
            self._reporter.plugin_failed(self._picker.name, error)
            raise InternalError(f"picker {self._picker.name!r} failed") from error
        if not chosen:
            raise InternalError(f"picker {self._picker.name!r} chose no endpoint")
        return chosen


def _clamp(score: float) -> float:
    """Into [0, 1]; NaN becomes 0, because it compares false with everything and would make the best endpoint a matter of order."""
    if math.isnan(score):
        return 0.0
    return 0.0 if score < 0.0 else 1.0
