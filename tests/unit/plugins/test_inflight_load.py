"""The in-flight ledger: exact under any order of decisions, ends, removals and time (spec/plugins.md 8.4)."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from epp.domain import Decision, DecisionId, EndCause, EndpointId, PrefixMatch, ProfileResult, RequestEnd
from epp.plugins.producers.inflight_load import InFlightLoadParams, InFlightLoadProducer
from epp.scheduling.interfaces import Cycle, InFlight, in_flight_key, prefix_match_key
from epp.scheduling.registry import Collaborators
from epp.testing.builders import make_cycle, make_endpoint, make_request, make_tokens

NAME = "inflight-load-producer"
FLEET = [make_endpoint(i) for i in range(3)]


def producer(max_age_s: float = 900.0, **params: Any) -> InFlightLoadProducer:
    return InFlightLoadProducer(NAME, InFlightLoadParams(**params), Collaborators(), max_age_s)


def decide(subject: InFlightLoadProducer, cycle: Cycle, number: int, *targets: int) -> Decision:
    """A decision for these endpoints, one profile each."""
    profiles = {f"profile-{target}": ProfileResult(f"profile-{target}", FLEET, [], [], [FLEET[target]]) for target in targets}
    decision = Decision(DecisionId(str(number)), "r", profiles[f"profile-{targets[0]}"], profiles, cycle.request, cycle.tokens)
    subject.decided(cycle, decision)
    return decision


def end(subject: InFlightLoadProducer, decision: Decision) -> None:
    subject.ended(decision, RequestEnd(decision.id, EndCause.FINISHED))


def load(subject: InFlightLoadProducer, now: float = 0.0) -> InFlight:
    cycle = make_cycle(FLEET, now=now)
    subject.produce(cycle)
    found = cycle.get(in_flight_key(NAME))
    assert found is not None
    return found


@dataclass
class Open:
    """The model of one open decision."""

    decision: Decision
    at: float
    counted: list[tuple[int, int, int]]
    """Endpoint, its generation, tokens."""


class Ledger(RuleBasedStateMachine):
    """Against a dumb model: a list of open decisions, summed anew each time."""

    MAX_AGE_S = 50.0

    @initialize()
    def begin(self) -> None:
        self.subject = producer(self.MAX_AGE_S)
        self.now = 0.0
        self.number = 0
        self.open: list[Open] = []
        self.over: list[Open] = []
        self.generation = [0, 0, 0]

    @rule(chosen=st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True), tokens=st.integers(0, 99), wait=st.floats(0, 30))
    def decides(self, chosen: list[int], tokens: int, wait: float) -> None:
        self.now += wait
        self.number += 1
        cycle = make_cycle(FLEET, tokens=make_tokens(tokens), now=self.now)
        decision = decide(self.subject, cycle, self.number, *chosen)
        self.open.append(Open(decision, self.now, [(target, self.generation[target], tokens) for target in chosen]))

    @rule(data=st.data())
    def ends_in_any_order_even_twice(self, data: st.DataObject) -> None:
        if everything := self.open + self.over:
            chosen = data.draw(st.sampled_from(everything))
            end(self.subject, chosen.decision)
            if chosen in self.open:
                self.open.remove(chosen)
                self.over.append(chosen)

    @rule(number=st.integers(0, 2))
    def endpoint_leaves_and_may_come_back(self, number: int) -> None:
        self.subject.endpoint_removed(EndpointId(f"default/pod-{number}"))
        self.generation[number] += 1

    @rule(wait=st.floats(0, 80))
    def time_passes(self, wait: float) -> None:
        self.now += wait

    @invariant()
    def the_load_is_what_is_open(self) -> None:
        self.over += [each for each in self.open if self.now - each.at > self.MAX_AGE_S]
        self.open = [each for each in self.open if self.now - each.at <= self.MAX_AGE_S]
        counted = [one for each in self.open for one in each.counted if one[1] == self.generation[one[0]]]
        found = load(self.subject, self.now)
        assert found.requests == [sum(target == i for target, _, _ in counted) for i in range(3)]
        assert found.tokens == [sum(tokens for target, _, tokens in counted if target == i) for i in range(3)]


TestLedger = Ledger.TestCase


@pytest.mark.parametrize(
    ("prompts", "matched", "expected"),
    [
        ((100,), None, 100),  # nothing known about prefixes
        ((100,), 0, 100),  # 6 blocks of 16 and a tail of 4
        ((100,), 5, 20),  # one block and the tail
        ((100,), 6, 4),
        ((20, 20), 1, 24),  # two prompts of one block each, tails of 4 each
    ],
)
def test_only_uncached_tokens_count(prompts: tuple[int, ...], matched: int | None, expected: int) -> None:
    """What the chosen endpoint holds need not be computed: (total - match) blocks and the tail."""
    subject = producer(prefix_match_info_producer_name="p")
    cycle = make_cycle(FLEET, tokens=make_tokens(*prompts))
    if matched is not None:
        total = sum(length // 16 for length in prompts)
        cycle.put(prefix_match_key("p"), PrefixMatch(16, total, [0, matched, 0], sum(prompts), [0, matched * 16, 0]))
    decide(subject, cycle, 1, 1)
    assert load(subject).tokens == [0, expected, 0]
    assert load(subject).requests == [0, 1, 0]


def test_without_token_ids_the_body_size_is_the_estimate() -> None:
    """Four bytes a token, as the estimate backend has it."""
    subject = producer()
    decide(subject, make_cycle(FLEET, request=make_request(size_bytes=403)), 1, 0)
    assert load(subject).tokens == [100, 0, 0]


@pytest.mark.parametrize(
    ("params", "max_tokens", "expected"),
    [
        ({}, 30, 100),
        ({"add_estimated_output_tokens": True}, None, 250),
        ({"add_estimated_output_tokens": True}, 30, 130),
        ({"add_estimated_output_tokens": True, "output_ratio": 0.1, "max_estimated_output_tokens": 7}, 30, 107),
    ],
)
def test_estimated_output_is_bounded_by_the_request_and_the_configuration(
    params: dict[str, Any], max_tokens: int | None, expected: int
) -> None:
    """Output counts only where asked for."""
    subject = producer(**params)
    decide(subject, make_cycle(FLEET, tokens=make_tokens(100), request=make_request(max_tokens=max_tokens)), 1, 0)
    assert load(subject).tokens == [expected, 0, 0]


def test_a_computed_prompt_weighs_no_more() -> None:
    """Once its blocks are stored the endpoint has the answer left to make, which counts only where that is asked for."""
    subject = producer(add_estimated_output_tokens=True, output_ratio=0.5)
    decision = decide(subject, make_cycle(FLEET, tokens=make_tokens(100)), 1, 0)
    assert load(subject).tokens == [150, 0, 0]
    subject.prefill_ended(decision.id, FLEET[1].id, 1.0)
    assert load(subject).tokens == [150, 0, 0]
    for _ in range(2):
        subject.prefill_ended(decision.id, FLEET[0].id, 1.0)
        assert (load(subject).requests, load(subject).tokens) == ([1, 0, 0], [50, 0, 0])
    end(subject, decision)
    assert (load(subject).requests, load(subject).tokens) == ([0, 0, 0], [0, 0, 0])
    subject.prefill_ended(decision.id, FLEET[0].id, 2.0)
    assert load(subject).tokens == [0, 0, 0]
