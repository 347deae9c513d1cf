"""The scheduler: order of steps, the handler's loop, and what failing plugins do to a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from epp.domain import Decision, DecisionId, EndCause, Endpoint, EndpointId, PrefixMatch, ProfileResult, RequestEnd
from epp.errors import InternalError, PreconditionFailedError, ResourceExhaustedError
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle, DataKey, prefix_match_key
from epp.scheduling.profile import Profile
from epp.scheduling.scheduler import Scheduler
from epp.testing.builders import make_cycle, make_endpoint

KEY = prefix_match_key("matches")
Rounds = Callable[[dict[str, ProfileResult | None]], Sequence[str]]


class First:
    name = "first"

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        return [candidates[0]]


class Drained:
    name = "drained"

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        return []


@dataclass
class Handler:
    rounds: Rounds
    main: str = "a"
    name: str = "handler"

    def pick_profiles(self, cycle: Cycle, profiles: Sequence[str], results: dict[str, ProfileResult | None]) -> Sequence[str]:
        return self.rounds(results)

    def primary(self, cycle: Cycle, results: dict[str, ProfileResult | None]) -> str:
        return self.main


@dataclass
class Plugin:
    """Produces, and observes everything; fails at the step it is told to."""

    name: str = "matches"
    fails_in: str = ""
    holder: int = 0
    """Which of the two endpoints holds a block."""
    seen: list[str] = field(default_factory=list)

    def _step(self, step: str) -> None:
        if step == self.fails_in:
            raise KeyError("oops")
        self.seen.append(step)

    def produces(self) -> Sequence[DataKey[Any]]:
        return (KEY,)

    def produce(self, cycle: Cycle) -> None:
        self._step("produce")
        held = [1 - self.holder, self.holder]
        cycle.put(KEY, PrefixMatch(16, 2, held, 32, [16 * blocks for blocks in held]))

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        self._step("decided")

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        self._step("ended")

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        self._step("removed")


@dataclass
class Failures(Reporter):
    plugins: list[str] = field(default_factory=list)

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        self.plugins.append(plugin)


def once(*names: str) -> Rounds:
    return lambda results: () if results else names


def scheduler(rounds: Rounds, *plugins: Plugin, reporter: Reporter | None = None, main: str = "a") -> Scheduler:
    """Profile "a" takes the first endpoint, "drained" has none left."""
    reporter = reporter or Reporter()
    profiles = {"a": Profile("a", [], [], First(), reporter), "drained": Profile("drained", [Drained()], [], First(), reporter)}
    return Scheduler(profiles, Handler(rounds, main), plugins, plugins, reporter)


def schedule(subject: Scheduler) -> Decision:
    cycle = make_cycle([make_endpoint(0), make_endpoint(1)], now=3.5)
    return subject.schedule(cycle, decision_id=DecisionId("d1"), request_id="r1")


def test_the_decision_carries_who_was_there_and_what_they_hold() -> None:
    """A decision tells its candidates, the prefix matches parallel to them, its time and the destination."""
    decision = schedule(scheduler(once("a"), Plugin()))
    assert (decision.id, decision.request_id, decision.decided_at) == ("d1", "r1", 3.5)
    assert [endpoint.id for endpoint in decision.scheduled] == ["default/pod-0", "default/pod-1"]
    assert decision.prefix["matches"].matched_tokens == [16, 0]
    assert decision.destination == "10.0.0.0:8000"
    assert decision.primary is decision.profiles["a"]


@pytest.mark.parametrize(("first", "plugins", "served"), [(0, True, True), (1, True, False), (0, False, False)])
def test_a_request_only_for_a_cached_prefix(first: int, plugins: bool, served: bool) -> None:  # noqa: FBT001  # a table
    """It is served where the choice holds some of its prompt; elsewhere, and where nobody knows, it is refused and nobody counts it."""
    plugin = Plugin()
    subject = scheduler(once("a"), *([plugin] if plugins else []))
    endpoints = [make_endpoint(first), make_endpoint(1 - first)]
    cycle = make_cycle(endpoints)
    plugin.holder = endpoints.index(make_endpoint(0))

    if served:
        assert subject.schedule(cycle, decision_id=DecisionId("d1"), request_id="r1", only_if_cached=True).endpoint == endpoints[0]
    else:
        with pytest.raises(PreconditionFailedError, match="no decode worker has the requested KV cache"):
            subject.schedule(cycle, decision_id=DecisionId("d1"), request_id="r1", only_if_cached=True)
    assert ("decided" in plugin.seen) == served


def test_hooks_run_inside_the_step_and_at_the_end() -> None:
    """When schedule returns, the plugins know the decision; each end and each removal reaches them once."""
    plugin = Plugin()
    subject = scheduler(once("a"), plugin)
    decision = schedule(subject)
    assert plugin.seen == ["produce", "decided"]
    subject.ended(decision, RequestEnd(decision.id, EndCause.FINISHED))
    subject.endpoint_removed(EndpointId("default/pod-1"))
    assert plugin.seen == ["produce", "decided", "ended", "removed"]


@pytest.mark.parametrize("step", ["produce", "decided", "ended", "removed"])
def test_a_failing_plugin_is_reported_and_nothing_else_suffers(step: str) -> None:
    """The request goes on, and the other plugins get their call."""
    broken, sound, failures = Plugin("broken", fails_in=step), Plugin("sound"), Failures()
    subject = scheduler(once("a"), broken, sound, reporter=failures)
    decision = schedule(subject)
    subject.ended(decision, RequestEnd(decision.id, EndCause.FINISHED))
    subject.endpoint_removed(EndpointId("default/pod-1"))
    assert sound.seen == ["produce", "decided", "ended", "removed"]
    assert failures.plugins == ["broken"]


def test_the_handler_sees_failed_profiles_and_may_go_on() -> None:
    """A profile without candidates is None for the handler; the decision holds what succeeded."""
    seen: list[dict[str, bool]] = []

    def rounds(results: dict[str, ProfileResult | None]) -> Sequence[str]:
        seen.append({name: result is not None for name, result in results.items()})
        return ("drained",) if not results else ("a",) if len(results) == 1 else ()

    decision = schedule(scheduler(rounds))
    assert seen == [{}, {"drained": False}, {"drained": False, "a": True}]
    assert list(decision.profiles) == ["a"]


def test_a_drained_primary_profile_is_429() -> None:
    """The primary profile's own error is the answer."""
    with pytest.raises(ResourceExhaustedError) as caught:
        schedule(scheduler(once("drained", "a"), main="drained"))
    assert caught.value.dropped_reason == "rejected-saturated"


def test_a_handler_that_runs_nothing_is_429() -> None:
    """No profile ran: the message names the request."""
    with pytest.raises(ResourceExhaustedError, match="failed to run any scheduler profile for request r1"):
        schedule(scheduler(lambda _: ()))


@pytest.mark.parametrize("rounds", [lambda _: ("a",), lambda _: ("nowhere",)], ids=["never ends", "unknown profile"])
def test_a_broken_handler_ends_the_request_and_not_the_process(rounds: Rounds) -> None:
    """500 and a report, instead of an endless loop or a stack trace."""
    failures = Failures()
    with pytest.raises(InternalError, match="profile handler 'handler' failed"):
        schedule(scheduler(rounds, reporter=failures))
    assert failures.plugins == ["handler"]
