"""What the parity monitor makes of answers, of counters and of silence: each alarm within 20 requests."""

import random
from collections.abc import Callable

import pytest

from epp.domain import Api, EndCause, Usage
from epp.kvcache.counted_hits import MAX_AGE_S, REQUESTS
from epp.kvcache.events import decode
from tests.unit.kvcache.engine import Engine
from tests.unit.kvcache.parity_fleet import PODS, SYSTEM, Fleet, chat, warm_up

A, B = PODS


# --- hits that are believed in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False], ids=["answers", "counters"])
def test_a_stale_index_is_noticed_within_20_requests(tells: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """An engine lost its cache without a word: what its answers or counters say of hits is less than half of what it was taken to hold."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng)
    conversations = [chat(rng) for _ in range(20)]
    for ours in conversations:
        fleet.serve(ours, A)
    engine = fleet.engines[A]
    before = fleet.now
    while fleet.now - before < 700:  # the counters' comparison begins anew
        fleet.now += 100
        fleet.scrape()
    engine.lose()
    publish, engine.publish = engine.publish, lambda _: None  # nor does anybody hear what it stores again
    for ours in conversations[: 20 if tells else REQUESTS + 1]:
        fleet.serve(ours, A, tells=tells)
    engine.publish = publish
    (loss,) = fleet.told.lost
    assert (loss.model, loss.cause, loss.endpoints) == ("m", "index", (A,))
    assert "stale index" in loss.detail
    assert fleet.stale == [A]


def test_an_engine_that_stores_again_what_it_was_taken_to_hold_has_lost_it() -> None:
    """Its events tell by themselves: no answers, no counters."""
    fleet, rng = Fleet(), random.Random(1)
    conversations = [chat(rng) for _ in range(20)]
    for ours in conversations * 2:
        fleet.serve(ours, A)
    assert fleet.told.verdicts == {"confirmed": 40}
    for ours in conversations:
        decision = fleet.decide(ours, A)
        fleet.engines[A].lose()
        fleet.engines[A].run(ours)
        fleet.end(decision)
    (loss,) = fleet.told.lost
    assert (loss.cause, loss.endpoints, loss.seen) == ("index", (A,), "store other blocks than expected")
    assert fleet.stale == [A]


def test_what_was_evicted_may_be_stored_again() -> None:
    """The engine said so, after we decided; it is right."""
    fleet, rng = Fleet(capacity=30), random.Random(1)
    conversations = [chat(rng) for _ in range(20)]
    for number in range(100):
        ours = conversations[number % 20]
        fleet.engines[A].run(ours)
        decision = fleet.decide(ours, A)
        for _ in range(4):
            fleet.engines[A].run([rng.randrange(90_000) for _ in range(200)])
        fleet.engines[A].run(ours)
        fleet.end(decision)
    assert fleet.told.verdicts["contradicted"] == 0


def test_prompts_that_are_computed_anew_store_again_what_is_there() -> None:
    """Asked for logprobs of the prompt, the engine looks nothing up; the others with this prefix are not contradicted by it."""
    fleet, rng = Fleet(), random.Random(1)
    conversations = [chat(rng) for _ in range(20)]
    for ours in conversations:
        fleet.serve(ours, A)
    for ours in conversations * 2:
        found, anew = fleet.decide(ours, A), fleet.decide(ours, A, body={"prompt_logprobs": 1})
        fleet.engines[A].run(ours)
        fleet.engines[A].run(ours, reads_cache=False)
        fleet.end(found, anew)
    assert fleet.told.verdicts == {"confirmed": 20 + 2 * 40}


def test_what_is_found_again_ends_the_alarm() -> None:
    """The index was learnt anew: foreseen hits are found, by the same witness."""
    fleet, rng = Fleet(), random.Random(1)
    conversations = [chat(rng) for _ in range(20)]
    for ours in conversations:
        fleet.serve(ours, A, tells=True)
    fleet.engines[A].lose()
    publish, fleet.engines[A].publish = fleet.engines[A].publish, lambda _: None
    for ours in conversations:
        fleet.serve(ours, A, tells=True)
    assert [loss.cause for loss in fleet.told.lost] == ["index"]
    fleet.index.clear(A)
    fleet.engines[A].publish = publish
    fleet.engines[A].lose()
    for _ in range(3):
        for ours in conversations:
            fleet.serve(ours, A, tells=True)
    assert fleet.told.restored == ["m"]
    assert len(fleet.told.lost) == 1


def test_traffic_past_us_makes_no_shortfall() -> None:
    """Counters go further than our requests alone, never less far."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng)
    for _ in range(60):
        fleet.serve(chat(rng), A)
        for _ in range(3):
            fleet.engines[A].run([rng.randrange(90_000) for _ in range(200)])
    assert len(fleet.told.counted) > 3
    assert all(found >= expected for expected, found in fleet.told.counted)
    assert not fleet.told.lost


def test_prompts_the_engine_does_not_look_up_are_not_missed() -> None:
    """Who asks for logprobs of the prompt has it computed anew, whatever is cached: neither answers nor counters say that we are wrong."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng)
    for number in range(60):
        ours, engine = chat(rng), fleet.engines[A]
        body: dict[str, object] = {"prompt_logprobs": 1} if number % 2 else {"echo": True, "logprobs": 1}
        decision = fleet.decide(ours, A, api=Api.COMPLETIONS, body=body)
        engine.run(ours, reads_cache=False)
        fleet.end(decision, usage=Usage(prompt_tokens=len(ours), cached_tokens=0))
        fleet.scrape()
    assert not fleet.told.lost


def test_an_engine_that_leaves_out_a_block_is_right() -> None:
    """With speculative decoding engines do not use the last cached block: a hit of five blocks is four."""
    fleet, rng = Fleet(), random.Random(1)
    for _ in range(40):
        ours = chat(rng)
        decision = fleet.decide(ours, A)
        cached = fleet.engines[A].run(ours)
        fleet.engines[A].hits -= 16 if cached else 0
        fleet.end(decision, usage=Usage(prompt_tokens=len(ours), cached_tokens=max(0, cached - 16)))
        fleet.scrape()
    assert not fleet.told.lost


@pytest.mark.parametrize(
    "disturb",
    [lambda engine: setattr(engine, "hits", 0), lambda engine: engine.restart()],
    ids=["counters that begin anew", "an engine that restarts"],
)
def test_counters_that_go_back_say_nothing(disturb: Callable[[Engine], None]) -> None:
    """They are another process's; what was foreseen of the old one is not looked for in them."""
    fleet, rng = Fleet(), random.Random(1)
    for number in range(60):
        fleet.serve(chat(rng), A)
        if number % 10 == 9:
            disturb(fleet.engines[A])
            fleet.index.clear(A)
    assert not fleet.told.counted
    assert not fleet.told.lost


def test_a_comparison_that_takes_too_long_begins_anew() -> None:
    """An endpoint with a request every few minutes: what its cache was then says nothing of now."""
    fleet, rng = Fleet(), random.Random(1)
    for _ in range(3 * REQUESTS):
        fleet.serve(chat(rng), A)
        fleet.now += MAX_AGE_S / 8
        fleet.scrape()
    assert not fleet.told.counted


def test_requests_that_failed_or_went_elsewhere_are_no_witnesses() -> None:
    """Their endpoint never had them, so it has found and stored nothing for them."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng)
    for number in range(60):
        decision = fleet.decide(chat(rng), A)
        usage = Usage(prompt_tokens=7, cached_tokens=0)
        if number % 3 == 0:
            fleet.answer(decision, usage, status=503)
        elif number % 3 == 1:
            fleet.answer(decision, usage, served="10.9.9.9:8000")
        else:
            fleet.answer(decision, usage, cause=EndCause.CLIENT_GONE)
        fleet.end()
        fleet.scrape()
    assert not fleet.told.lost
    assert not fleet.told.counts


# --- how many tokens a prompt has -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "cause", "detail"),
    [
        (lambda ours: [1, *ours], "bos", "beginning-of-sequence token: engines count 1 more"),
        (lambda ours: [*ours[:5], 7, 8, 9, *ours[5:]], "template", "chat template or tokenizer: engines count 3 more"),
        (lambda ours: ours[4:], "template", "chat template or tokenizer: engines count 4 less"),
    ],
    ids=["BOS", "longer", "shorter"],
)
def test_other_counts_of_prompt_tokens_are_noticed_without_any_events(
    theirs: Callable[[list[int]], list[int]], cause: str, detail: str
) -> None:
    """The answers' usage alone tells, on the eighth request: no pod has published anything."""
    fleet, rng = Fleet(), random.Random(1)
    for number in range(20):
        ours = chat(rng)
        fleet.end(fleet.decide(ours, PODS[number % 2]), usage=Usage(prompt_tokens=len(theirs(ours))))
    (loss,) = fleet.told.lost
    assert (loss.cause, loss.detail, loss.wrong, loss.of) == (cause, detail, 8, 8)
    assert fleet.told.counts == {False: 20}


@pytest.mark.parametrize("api", [Api.MESSAGES, Api.RESPONSES])
def test_counts_that_mean_something_else_are_not_compared(api: Api) -> None:
    """Anthropic's input tokens leave out the cached ones; an answer of several turns adds them up."""
    fleet, rng = Fleet(), random.Random(1)
    for _ in range(20):
        fleet.end(fleet.decide(chat(rng), A, api=api), usage=Usage(prompt_tokens=3))
    assert not fleet.told.counts


# --- silence ----------------------------------------------------------------------------------------------------------


def test_an_engine_that_publishes_nothing_is_named() -> None:
    """Its events were forgotten, or come from another port: requests are answered, and no block is ever stored."""
    fleet, rng = Fleet(), random.Random(1)
    fleet.engines[A].publish = lambda _: None
    for _ in range(20):
        fleet.serve(chat(rng), A)
        fleet.serve(chat(rng), B)
    (loss,) = fleet.told.lost
    assert (loss.cause, loss.endpoints) == ("silent", (A,))


@pytest.mark.parametrize(
    ("payload", "cause", "detail"),
    [
        (b"\xc1", "version", "engine version: their events cannot be used (payload)"),
        (b"\x92\xcb?\xf0\x00\x00\x00\x00\x00\x00\x91\x81\xa4type\xabBlockStored", "version", "their events cannot be used (block"),
    ],
    ids=["another encoding", "a field is missing"],
)
def test_an_engine_whose_events_cannot_be_read_is_of_another_version(payload: bytes, cause: str, detail: str) -> None:
    """It publishes, and not a block can be made of it."""
    fleet, rng = Fleet(), random.Random(1)
    fleet.engines[A].publish = lambda _: fleet.index.apply(A, 0, decode(payload))
    for _ in range(20):
        fleet.serve(chat(rng), A)
    (loss,) = fleet.told.lost
    assert loss.cause == cause
    assert detail in loss.detail


def test_an_engine_that_came_back_unnoticed_with_another_block_size_is_named() -> None:
    """Its events do not fit what it said before; none of them counts."""
    fleet, rng = Fleet(), random.Random(1)
    fleet.serve(chat(rng), A)
    fleet.engines[A] = Engine(fleet.engines[A].publish, block_size=24)
    for _ in range(20):
        fleet.serve(chat(rng), A)
    (loss,) = fleet.told.lost
    assert loss.cause == "block_size"
    assert "block size: their events cannot be used (block size)" in loss.detail


def test_an_engine_that_was_warm_before_us_and_cannot_replay_is_named() -> None:
    """All it stores goes on from blocks nobody told us of: its prefixes stay unknown however long we listen."""
    fleet, rng = Fleet(), random.Random(1)
    publish, fleet.engines[A].publish = fleet.engines[A].publish, lambda _: None
    fleet.engines[A].run(SYSTEM)
    fleet.engines[A].publish = publish
    for _ in range(20):
        fleet.serve(chat(rng), A)
    (loss,) = fleet.told.lost
    assert (loss.cause, fleet.stale) == ("index", [])
    assert "is there a replay socket?" in loss.detail


def test_a_burst_that_is_not_heard_of_yet_is_no_silence() -> None:
    """Events can be late for a moment; an alarm needs ten seconds of it."""
    fleet, rng = Fleet(), random.Random(1)
    decisions = [fleet.decide(chat(rng), A) for _ in range(30)]
    fleet.end(*decisions)
    assert not fleet.told.lost
