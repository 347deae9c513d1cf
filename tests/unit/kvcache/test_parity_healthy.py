"""What an engine may do with a request and be right: no alarm, and nothing learnt anew. Each was seen of vLLM 0.32's own block manager."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from epp.domain import EndCause, EndpointId, Usage
from tests.unit.kvcache.parity_fleet import PODS, SYSTEM, Fleet, chat, warm_up

A, B = PODS
BLOCK = 16

Write = Callable[[dict[str, Any]], Sequence[dict[str, Any]]]
"""What an engine of another model writes in place of one event."""


def test_an_engine_that_leaves_out_the_only_block_it_holds_is_right() -> None:
    """With speculative decoding the last cached block is computed again: where many share one block, that is the first."""
    fleet, rng = Fleet(), random.Random(1)
    for _ in range(40):
        ours = [*SYSTEM[:BLOCK], *(rng.randrange(5000, 90_000) for _ in range(40))]
        decision = fleet.decide(ours, A)
        cached = fleet.engines[A].run(ours, leaves_out=1)
        fleet.end(decision, usage=Usage(prompt_tokens=len(ours), cached_tokens=cached))
    assert fleet.told.verdicts == {"confirmed": 40}
    assert not fleet.told.lost


def hybrid(event: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """A group that attends to everything, and one with a window that keeps none of these blocks."""
    if event["type"] != "BlockStored":
        return [event | {"group_idx": 0}]
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "block_hashes": [], "extra_keys": []}
    return [event | {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}, event | window]


def windows_only(event: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """All layers have a window."""
    kind = {"kv_cache_spec_kind": "sliding_window"} if event["type"] == "BlockStored" else {}
    return [event | kind | {"group_idx": 0}]


def of_model(fleet: Fleet, pod: EndpointId, write: Write) -> None:
    """The engine publishes what one of this model would."""
    engine = fleet.engines[pod]
    publish = engine.publish

    def rewritten(payload: bytes) -> None:
        batch = msgspec.msgpack.decode(payload)
        publish(msgspec.msgpack.encode(batch | {"events": [new for event in batch["events"] for new in write(event)]}))

    engine.publish = rewritten


@pytest.mark.parametrize("tells", [True, False], ids=["answers", "events"])
def test_a_hybrid_engine_may_find_less_than_its_full_attention_holds(tells: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Its windows were not kept where the shared prefix ends, so all of the prompt is computed, and stored, again."""
    fleet, rng = Fleet(), random.Random(1)
    of_model(fleet, A, hybrid)
    for _ in range(40):
        ours = chat(rng)
        decision = fleet.decide(ours, A)
        fleet.engines[A].run(ours, reads_cache=False)
        fleet.end(decision, usage=Usage(prompt_tokens=len(ours), cached_tokens=0) if tells else None)
        fleet.scrape()
    assert fleet.told.verdicts == {"confirmed": 40}
    assert not fleet.told.lost
    assert not fleet.stale


def test_an_engine_whose_groups_all_have_windows_is_not_silent() -> None:
    """Nobody follows what it holds, so its requests are unseen; but its events come."""
    fleet, rng = Fleet(), random.Random(1)
    of_model(fleet, A, windows_only)
    for _ in range(40):
        fleet.serve(chat(rng), A)
    assert fleet.told.verdicts == {"unseen": 40}
    assert not fleet.told.lost


def test_what_was_evicted_while_a_request_waited_is_not_missed() -> None:
    """It was there when the request was decided, and the engine said that it went: answers and counters that find nothing are right."""
    fleet, rng = Fleet(capacity=40), random.Random(1)
    conversations = [chat(rng) for _ in range(40)]
    for ours in conversations:
        fleet.engines[A].run(ours)
        decision = fleet.decide(ours, A)
        for _ in range(4):
            fleet.engines[A].run([rng.randrange(90_000) for _ in range(200)])
        cached = fleet.engines[A].run(ours)
        assert not cached
        fleet.end(decision, usage=Usage(prompt_tokens=len(ours), cached_tokens=cached))
        fleet.scrape()
    assert not fleet.told.lost
    assert not fleet.stale


def test_two_that_compute_one_prompt_anew_contradict_none_that_found_it() -> None:
    """The first of them stores what both were expected to; the second stores it all the same."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng)
    for _ in range(20):
        ours = chat(rng)
        fleet.engines[A].run(ours)
        anew = [fleet.decide(ours, A, body={"prompt_logprobs": 1}) for _ in range(2)]
        found = fleet.decide([*ours, *range(40)], A)
        for _ in anew:
            fleet.engines[A].run(ours, reads_cache=False)
        fleet.engines[A].run([*ours, *range(40)])
        fleet.end(found, *anew)
    assert fleet.told.verdicts == {"confirmed": 20 + 60}


def test_requests_given_up_while_they_waited_are_contradicted_by_nothing() -> None:
    """Others with the same first tokens, which nobody predicted, are stored meanwhile: that says nothing of these."""
    fleet, rng = Fleet(engine_block_size=128), random.Random(1)
    fleet.index.set_block_size(A, 128)
    for _ in range(40):
        decision = fleet.decide(chat(rng, 200), A)
        fleet.engines[A].run(chat(rng, 200))
        fleet.answer(decision, cause=EndCause.CLIENT_GONE)
        fleet.end()
    assert fleet.told.verdicts == {"unseen": 40}
    assert not fleet.told.lost
