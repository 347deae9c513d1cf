"""The parity monitor: an alarm within 20 requests where our tokens are not the engine's, none where they are."""

import random
from collections.abc import Callable

import msgspec
import pytest

from epp.domain import DecisionId, EndpointId, TokenizedRequest, TokenState, Usage
from epp.kvcache import predictions
from epp.kvcache.predictions import PrefillEnded
from tests.unit.kvcache.parity_fleet import PODS, Fleet, chat


@pytest.mark.parametrize(
    ("engines_view", "cause"),
    [
        (lambda ours: ([77, 78, 79, *ours[5:-3], 80], None, None), "chat template or tokenizer"),
        (lambda ours: ([*ours[:90], 81, *ours[90:]], None, None), "chat template or tokenizer: prompts differ from token 90 on"),
        (lambda ours: ([*ours[:64], *(token + 1 for token in ours[64:])], None, None), "prompts differ from token 64 on"),
        (lambda ours: ([1, *ours], None, None), "beginning-of-sequence token"),
        (lambda ours: (ours[1:], None, None), "beginning-of-sequence token"),
        (lambda ours: (ours, "other", None), "LoRA name"),
        (lambda ours: (ours, None, "pepper"), "cache salt"),
    ],
    ids=["header", "in the middle", "after a block", "BOS missing", "BOS too much", "LoRA", "salt"],
)
def test_wrong_tokens_are_noticed_within_20_requests(
    engines_view: Callable[[list[int]], tuple[list[int], str | None, str | None]], cause: str
) -> None:
    """One alarm, which names the pods and the cause."""
    fleet, rng = Fleet(), random.Random(1)
    for number in range(20):
        ours = chat(rng)
        pod = PODS[number % 2]
        decision = fleet.decide(ours, pod, ttl_s=2.0)
        tokens, lora, salt = engines_view(ours)
        fleet.engines[pod].run(tokens, [rng.randrange(90_000) for _ in range(30)], lora=lora, salt=salt)
        fleet.end(decision)
    assert len(fleet.told.lost) == 1
    loss = fleet.told.lost[0]
    assert (loss.model, set(loss.endpoints)) == ("m", set(PODS))
    assert cause in loss.detail


def test_an_engine_with_another_block_size_than_configured_is_no_mystery() -> None:
    """Until its first event tells, the configured size is expected; then its own. So a burst at the start is wrong about nothing."""
    fleet, rng = Fleet(engine_block_size=32), random.Random(1)
    burst = [chat(rng) for _ in range(20)]
    decisions = [fleet.decide(ours, PODS[0]) for ours in burst]
    for ours, decision in zip(burst, decisions, strict=True):
        fleet.engines[PODS[0]].run(ours)
        fleet.end(decision)
    for _ in range(20):
        fleet.serve(chat(rng), PODS[0])
    assert not fleet.told.lost
    assert fleet.told.verdicts == {"unseen": 20, "confirmed": 20}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [10_000, 300], ids=["roomy", "evicting"])
def test_no_alarm_in_2000_healthy_requests(seed: int, capacity: int) -> None:
    """With decode blocks, duplicates, eviction, requests in any order at a time, repeated prompts, and a tenth of the traffic past us.

    Answers state their usage and counters are scraped, so every witness is heard.
    """
    fleet, rng = Fleet(capacity=capacity), random.Random(seed)
    known = [chat(rng, rng.randrange(10, 200)) for _ in range(30)]
    under_way: list[tuple[DecisionId | None, EndpointId, list[int]]] = []
    for _ in range(2000):
        prompt = rng.choice(known) + [rng.randrange(90_000) for _ in range(rng.choice([0, 20, 60]))] if rng.random() < 0.7 else chat(rng)
        pod = rng.choice(PODS)
        bypasses = rng.random() < 0.1
        under_way.append((None if bypasses else fleet.decide(prompt, pod, ttl_s=2.0), pod, prompt))
        while len(under_way) > rng.randrange(12):
            decision, where, tokens = under_way.pop(rng.randrange(len(under_way)))
            if decision is not None and rng.random() < 0.05:  # given up while it waited
                fleet.end(decision)
                continue
            cached = fleet.engines[where].run(tokens, [rng.randrange(90_000) for _ in range(rng.randrange(60))])
            if rng.random() < 0.1:
                fleet.engines[where].duplicate()
            if decision is not None:
                fleet.answer(decision, Usage(prompt_tokens=len(tokens), cached_tokens=cached))
        fleet.now += 0.05
        fleet.index.sweep(fleet.now)
        fleet.scrape()
    fleet.end()
    assert fleet.told.lost == []
    verdicts = fleet.told.verdicts
    assert verdicts["contradicted"] <= verdicts.total() * 0.02
    assert verdicts["confirmed"] >= verdicts.total() * 0.85
    assert set(fleet.told.counts) == {True}
    assert len(fleet.told.counted) > 20


def test_an_alarm_ends_when_tokens_are_right_again() -> None:
    """The operator mended the template."""
    fleet, rng = Fleet(), random.Random(1)
    for number in range(80):
        ours = chat(rng)
        decision = fleet.decide(ours, PODS[0])
        fleet.engines[PODS[0]].run([1, *ours] if number < 20 else ours)
        fleet.end(decision)
    assert (len(fleet.told.lost), fleet.told.restored) == (1, ["m"])


def test_events_that_never_come_are_unseen() -> None:
    """Lost events are no sign of wrong tokens."""
    fleet = Fleet()
    fleet.end(fleet.decide(chat(random.Random(1)), PODS[0]))
    assert fleet.told.verdicts == {"unseen": 1}


def test_a_restart_contradicts_nothing() -> None:
    """What was expected of the engine is expected no more."""
    fleet, ours = Fleet(), chat(random.Random(1))
    decision = fleet.decide(ours, PODS[0])
    fleet.engines[PODS[0]].publish(msgspec.msgpack.encode([1.0, [["AllBlocksCleared"]]]))
    fleet.engines[PODS[0]].run([1, *ours])
    fleet.end(decision)
    assert fleet.told.verdicts == {"unseen": 1}


# --- the end of a prefill --------------------------------------------------------------------------------------------


def test_the_last_full_block_ends_the_prefill() -> None:
    """Told once, with the time; not by the blocks of the answer."""
    fleet, ours = Fleet(), chat(random.Random(1))
    decision = fleet.decide(ours, PODS[0])
    fleet.now = 7.5
    fleet.engines[PODS[0]].run(ours, range(100))
    assert fleet.prefills == [PrefillEnded(decision, PODS[0], "m", 7.5, 7.5)]


def test_a_prompt_that_is_cached_whole_has_no_end_of_prefill() -> None:
    """It stores nothing; the answer's end is the only sign."""
    fleet, ours = Fleet(), chat(random.Random(1))
    fleet.engines[PODS[0]].run(ours)
    fleet.decide(ours, PODS[0])
    fleet.engines[PODS[0]].run(ours)
    assert fleet.prefills == []


def test_requests_with_one_prefix_end_their_prefills_each() -> None:
    """Two wait for the same blocks: both have what they need when these are stored."""
    fleet, ours = Fleet(), chat(random.Random(1))
    first, second = fleet.decide(ours, PODS[0]), fleet.decide([*ours, *range(40)], PODS[0])
    fleet.engines[PODS[0]].run(ours)
    assert [prefill.decision_id for prefill in fleet.prefills] == [first]
    fleet.engines[PODS[0]].run([*ours, *range(40)])
    assert [prefill.decision_id for prefill in fleet.prefills] == [first, second]


def test_a_speculated_prefix_outlives_its_ttl_while_its_request_waits() -> None:
    """Queues can last longer than two seconds; the next request with this prefix still follows it."""
    fleet, ours = Fleet(), chat(random.Random(1))
    decision = fleet.decide(ours, PODS[0], ttl_s=2.0)

    def held() -> int:
        return fleet.index.match(TokenizedRequest(TokenState.EXACT, [ours]), PODS, fleet.now).tokens[0]

    for _ in range(20):
        fleet.now += 0.9
        fleet.index.sweep(fleet.now)
        assert held() > 0
    fleet.answer(decision)
    for _ in range(3):
        fleet.now += 0.9
        fleet.index.sweep(fleet.now)
    assert held() == 0


def test_a_speculated_prefix_that_was_computed_needs_no_speculation() -> None:
    """Its events confirm it; when they say it is evicted, nothing keeps it."""
    fleet, ours = Fleet(), chat(random.Random(1))
    fleet.decide(ours, PODS[0], ttl_s=2.0)
    fleet.engines[PODS[0]].run(ours)
    fleet.now += 3.0
    fleet.index.sweep(fleet.now)
    fleet.index.clear(PODS[0])
    assert fleet.index.match(TokenizedRequest(TokenState.EXACT, [ours]), PODS, fleet.now).tokens[0] == 0


def test_what_is_watched_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests beyond it are served all the same; their prefix is speculated for its plain time, and their prefill ends unseen."""
    monkeypatch.setattr(predictions, "MAX_OPEN", 2)
    fleet, rng = Fleet(), random.Random(1)
    prompts = [chat(rng) for _ in range(3)]
    decisions = [fleet.decide(ours, PODS[0], ttl_s=2.0) for ours in prompts]
    for ours in prompts:
        fleet.engines[PODS[0]].run(ours)
    fleet.end(*decisions)
    assert [prefill.decision_id for prefill in fleet.prefills] == decisions[:2]
    assert fleet.told.verdicts == {"confirmed": 2}
