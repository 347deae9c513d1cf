"""A profile run: what filters, scores and picks mean for the result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from epp.domain import Endpoint
from epp.errors import BadRequestError, InternalError, ResourceExhaustedError
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle
from epp.scheduling.profile import Profile
from epp.testing.builders import make_cycle, make_endpoint


@dataclass
class Says:
    """A scorer with a fixed opinion."""

    scores: list[float]
    name: str = "says"

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        return list(self.scores)


@dataclass
class Keeps:
    """A filter that keeps some positions."""

    positions: tuple[int, ...]
    name: str = "keeps"

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        return [candidates[i] for i in self.positions]


class Best:
    """A picker without chance."""

    name = "best"

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        return [candidates[max(range(len(totals)), key=totals.__getitem__)]]


class Broken:
    """Fails in every role."""

    name = "broken"

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        raise KeyError("oops")

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        raise KeyError("oops")

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        raise KeyError("oops")


class Refuses(Broken):
    """Ends the request on purpose."""

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        raise BadRequestError("no session")

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        raise BadRequestError("no session")


class PicksNone(Best):
    """A picker that breaks its promise."""

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        return []


@dataclass
class Failures(Reporter):
    """Who failed."""

    plugins: list[str] = field(default_factory=list)

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        self.plugins.append(plugin)


def three() -> Cycle:
    return make_cycle([make_endpoint(i) for i in range(3)])


def test_weighted_scores_are_summed_and_recorded() -> None:
    """The total of a candidate is the weighted sum, and the record tells who said what with which weight."""
    result = Profile("p", [], [(Says([0.0, 0.5, 1.0], "a"), 2.0), (Says([1.0, 0.5, 0.0], "b"), -1.0)], Best(), Reporter()).run(three())
    assert result.totals == [-1.0, 0.5, 2.0]
    assert [(said.name, said.weight, said.scores) for said in result.scores] == [("a", 2.0, [0.0, 0.5, 1.0]), ("b", -1.0, [1.0, 0.5, 0.0])]
    assert [endpoint.id for endpoint in result.chosen] == ["default/pod-2"]


def test_scores_outside_the_range_are_clamped_and_nan_counts_nothing() -> None:
    """A scorer cannot buy more influence than its weight, and NaN cannot make the choice a matter of order."""
    result = Profile("p", [], [(Says([math.nan, 7.0, -math.inf]), 3.0)], Best(), Reporter()).run(three())
    assert result.totals == [0.0, 3.0, 0.0]
    assert result.scores[0].scores == [0.0, 1.0, 0.0]


def test_filters_run_in_order_over_what_is_left() -> None:
    """The second filter sees only what the first one kept."""
    result = Profile("p", [Keeps((1, 2)), Keeps((1,))], [], Best(), Reporter()).run(three())
    assert [endpoint.id for endpoint in result.candidates] == ["default/pod-2"]


def test_no_candidate_left_is_429_with_its_reason() -> None:
    """A request for which filters drained everything is told to come back, before later filters are asked."""
    profile = Profile("p", [Keeps(()), Broken()], [], Best(), Reporter())
    with pytest.raises(ResourceExhaustedError, match="no endpoints available for the given request") as caught:
        profile.run(three())
    assert caught.value.dropped_reason == "rejected-saturated"


@pytest.mark.parametrize("scorer", [Broken(), Says([1.0])], ids=["raises", "too few scores"])
def test_a_broken_scorer_is_left_out_and_reported(scorer: Broken | Says) -> None:
    """The request goes on by the opinion of the others."""
    failures = Failures()
    result = Profile("p", [], [(scorer, 5.0), (Says([0.0, 1.0, 0.0]), 1.0)], Best(), failures).run(three())
    assert result.totals == [0.0, 1.0, 0.0]
    assert failures.plugins == [scorer.name]


def test_a_broken_filter_or_picker_ends_the_request_with_500() -> None:
    """Going on could send the request to an endpoint that must not have it."""
    failures = Failures()
    with pytest.raises(InternalError, match="filter 'broken' failed"):
        Profile("p", [Broken()], [], Best(), failures).run(three())
    with pytest.raises(InternalError, match="picker 'broken' failed"):
        Profile("p", [], [], Broken(), failures).run(three())
    assert failures.plugins == ["broken", "broken"]
    with pytest.raises(InternalError, match="picker 'best' chose no endpoint"):
        Profile("p", [], [], PicksNone(), failures).run(three())


def test_a_plugin_may_end_the_request_with_a_status_of_its_own() -> None:
    """A RequestError is an answer, not a failure."""
    failures = Failures()
    for profile in (Profile("p", [Refuses()], [], Best(), failures), Profile("p", [], [], Refuses(), failures)):
        with pytest.raises(BadRequestError, match="no session"):
            profile.run(three())
    assert failures.plugins == []
