"""Scheduling and caching of the engine model, by hand-made cases and against a dumb consumer of its events."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.simulator.engine import Engine, EngineConfig, LatencyProfile, Request, Step, StepResult
from epp.simulator.events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from epp.simulator.hashing import BlockHasher, ExternalHash, external

CONFIG = EngineConfig(
    block_size=4,
    num_blocks=17,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    latency=LatencyProfile(step_ms=10, prefill_us_per_token=2000, decode_us_per_request=500),
)


def engine_with(requests: Sequence[Request] = (), *, config: EngineConfig = CONFIG) -> Engine:
    """An engine with these requests in its queue."""
    engine = Engine(config, BlockHasher())
    for request in requests:
        engine.add(request)
    return engine


def a_request(name: str, prompt: int | Sequence[int], answer: int = 2) -> Request:
    """A request; a number of tokens stands for ones that no other prompt shares."""
    tokens = [sum(name.encode()) * 1000 + index for index in range(prompt)] if isinstance(prompt, int) else prompt
    return Request(name, tokens, list(range(900, 900 + answer)))


def step(engine: Engine) -> tuple[Step, StepResult]:
    """One whole step."""
    step = engine.start_step()
    assert step is not None
    return step, engine.finish_step()


def run_out(engine: Engine) -> list[KvEvent]:
    """Step until nothing is left to do; every event."""
    events: list[KvEvent] = []
    while engine.start_step() is not None:
        events += engine.finish_step().events
    return events


def test_a_hit_is_announced_again_where_that_is_asked_for() -> None:
    """The whole prefix from token 0 on, as if it was stored; what is not a hit follows as ever."""
    engine = engine_with([a_request("a", range(8))])
    run_out(engine)
    request = a_request("b", range(16))
    request.reports_hit = True
    engine.add(request)
    hit, rest = (event for event in run_out(engine) if isinstance(event, BlockStored))
    assert (hit.parent_block_hash, hit.token_ids, rest.token_ids) == (None, list(range(8)), list(range(8, 16)))
    assert rest.parent_block_hash == hit.block_hashes[-1]


def test_an_idle_engine_has_no_steps() -> None:
    """Nothing to do, nothing published."""
    assert engine_with().start_step() is None


def test_a_long_prompt_is_computed_in_chunks() -> None:
    """Each step takes the token budget and announces the blocks it fills; the first token comes with the last chunk."""
    engine = engine_with([a_request("a", 36)])
    sizes, blocks, firsts = [], [], []
    for _ in range(3):
        this, result = step(engine)
        sizes.append(this.prefill_tokens)
        blocks.append([len(event.block_hashes) for event in result.events if isinstance(event, BlockStored)])
        firsts.append([output.is_first for output in result.outputs])
    assert sizes == [16, 16, 4]
    assert blocks == [[4], [4], [1]]
    assert firsts == [[], [], [True]]


def test_prefill_shares_a_step_with_decodes() -> None:
    """A running answer goes on while another prompt is computed with what is left of the budget."""
    engine = engine_with([a_request("a", 4, answer=9)])
    step(engine)
    engine.add(a_request("b", 20))
    this, result = step(engine)
    assert (this.prefill_tokens, this.decodes) == (15, 1)
    assert [output.request.id for output in result.outputs] == ["a"]
    assert this.duration_s == pytest.approx(15 * 0.002 + 0.0005)


def test_a_step_has_a_shortest_length() -> None:
    """A pure decode step costs the weights' pass, however small the batch."""
    engine = engine_with([a_request("a", 1, answer=5)])
    step(engine)
    assert step(engine)[0].duration_s == pytest.approx(0.0105)


def test_the_batch_limit_keeps_others_waiting() -> None:
    """No more than max_num_seqs run; the queue is first come, first served."""
    requests = [a_request(name, 1, answer=3) for name in "abcdef"]
    engine = engine_with(requests)
    step(engine)
    assert [request.id for request in engine.running] == list("abcd")
    assert [request.id for request in engine.waiting] == list("ef")


def test_a_request_that_does_not_fit_waits() -> None:
    """A request runs only when its whole answer fits beside those already promised, and nobody overtakes it."""
    engine = engine_with([a_request("a", 4, answer=40), a_request("b", 4, answer=25), a_request("c", 1, answer=1)])
    step(engine)
    assert [request.id for request in engine.running] == ["a"]
    run_out(engine)
    assert engine.pool.usage == 0
    assert engine.stats.generated_tokens == 66


def test_a_hit_on_free_blocks_takes_them_too() -> None:
    """Cached blocks that nobody uses are free until they are hit: they count when a request wants to be admitted."""
    engine = engine_with([a_request("a", range(33), answer=1)])
    run_out(engine)
    engine.add(a_request("b", 4, answer=33))
    step(engine)
    engine.add(a_request("c", range(33), answer=2))
    step(engine)
    assert [request.id for request in engine.running] == ["b"]
    run_out(engine)
    assert engine.stats.generated_tokens == 36


def test_an_abort_gives_back_what_was_promised() -> None:
    """Blocks kept for the rest of an answer are there for others when its client leaves."""
    first, second = a_request("a", 4, answer=60), a_request("b", 4, answer=60)
    engine = engine_with([first, second])
    step(engine)
    engine.abort(first)
    step(engine)
    assert engine.running == [second]


def test_nobody_is_admitted_after_the_budget_is_spent() -> None:
    """A prompt that fills the step keeps the next one in the queue, where metrics show it."""
    engine = engine_with([a_request("a", 16), a_request("b", 4)])
    step(engine)
    assert [request.id for request in engine.waiting] == ["b"]


def test_a_request_larger_than_the_cache_is_refused() -> None:
    """It would wait for ever."""
    with pytest.raises(ValueError, match="never run"):
        engine_with([a_request("a", 60, answer=6)])


def test_the_same_prompt_again_is_a_hit_but_for_its_last_token() -> None:
    """All full blocks are cached, yet the last one is computed again: a second copy, announced again."""
    engine = engine_with([a_request("a", 8, answer=1)])
    (first,) = run_out(engine)
    again = a_request("a", 8, answer=1)
    engine.add(again)
    (second,) = run_out(engine)
    assert again.cached_tokens == 4
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert second.block_hashes == first.block_hashes[1:]
    assert second.parent_block_hash == first.block_hashes[0]
    assert (engine.stats.prefix_queries, engine.stats.prefix_hits) == (16, 4)


def test_a_prefix_is_hit_from_the_step_that_computes_it() -> None:
    """Blocks enter the cache when their step is scheduled: a second prompt of the same step finds them."""
    engine = engine_with([a_request("a", range(9)), a_request("b", [*range(8), 77])])
    this, result = step(engine)
    assert this.prefill_tokens == 10
    assert engine.running[1].cached_tokens == 8
    assert len(result.events) == 1


def test_decoded_blocks_are_announced_and_hit() -> None:
    """A conversation that goes on finds the blocks its own answer filled."""
    first = a_request("a", 6, answer=7)
    engine = engine_with([first])
    run_out(engine)
    follow_up = a_request("b", [*first.prompt, *first.answer, 55])
    engine.add(follow_up)
    run_out(engine)
    assert follow_up.cached_tokens == 12


def test_salt_and_adapter_keep_prompts_apart() -> None:
    """The same tokens under a salt are other blocks."""
    engine = engine_with([a_request("a", range(9))])
    run_out(engine)
    salted = Request("b", range(9), [1], cache_salt="tenant")
    engine.add(salted)
    (event,) = run_out(engine)
    assert salted.cached_tokens == 0
    assert isinstance(event, BlockStored)
    assert event.extra_keys == [["tenant"], None]


def test_removals_come_before_the_store_that_caused_them() -> None:
    """In one batch first what had to go, then what came."""
    engine = engine_with([a_request("a", 16, answer=1)], config=replace(CONFIG, num_blocks=5))
    run_out(engine)
    engine.add(a_request("b", 8, answer=1))
    kinds = [type(event) for event in step(engine)[1].events]
    assert kinds == [BlockRemoved, BlockRemoved, BlockStored]


@pytest.mark.parametrize("during_step", [False, True])
def test_an_abort_frees_blocks(*, during_step: bool) -> None:
    """A client that leaves takes its blocks along; in the middle of a step, at its end, without another token."""
    request = a_request("a", 20, answer=5)
    engine = engine_with([request])
    step(engine)
    if during_step:
        engine.start_step()
        engine.abort(request)
        assert engine.pool.usage > 0
        assert engine.finish_step().outputs == []
    else:
        engine.abort(request)
    assert (engine.pool.usage, engine.running) == (0, [])
    assert engine.start_step() is None


def test_an_abort_in_the_queue() -> None:
    """A request that never ran leaves the queue."""
    request = a_request("a", 20)
    engine = engine_with([request])
    engine.abort(request)
    assert engine.start_step() is None


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=24)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(PROMPTS, st.integers(1, 12)),
        st.just("start"),
        st.just("finish"),
        st.just("reset"),
        st.integers(0, 3),  # abort that one of the running
    ),
    max_size=60,
)


@settings(deadline=None)
@given(ACTIONS)
def test_whatever_happens_the_books_balance(actions: list[tuple[list[int], int] | str | int]) -> None:
    """No block is both free and used, no hit covers a whole prompt, and who counts stores and removals knows the cache."""
    config = EngineConfig(block_size=2, num_blocks=20, max_num_seqs=3, max_num_batched_tokens=6)
    engine = Engine(config, BlockHasher())
    copies: Counter[ExternalHash] = Counter()
    digests: dict[ExternalHash, bytes] = {}
    in_step = False
    # The last request's step publishes what a reset before it left behind.
    for action in [*actions, ([0], 1), *["start", "finish"] * 200]:
        if isinstance(action, tuple):
            request = Request("r", action[0], [index % 2 for index in range(action[1])])
            engine.add(request)
        elif isinstance(action, int):
            for request in engine.running[action : action + 1]:
                engine.abort(request)
        elif action == "start" and not in_step:
            in_step = engine.start_step() is not None
        elif action == "finish" and in_step:
            in_step = False
            apply(copies, engine.finish_step().events)
        elif action == "reset":
            engine.reset_prefix_cache()
        check_blocks(engine)
        for request in engine.running:
            digests |= {external(digest): digest for digest in request.digests}
    assert not engine.running
    assert not engine.waiting
    for hash_, digest in digests.items():
        assert bool(engine.pool.longest_hit([digest], limit=1)) == (copies[hash_] > 0)
    assert sum(copies.values()) <= engine.pool.capacity


def apply(copies: Counter[ExternalHash], events: Sequence[KvEvent]) -> None:
    """Count physical copies as a picker may."""
    for event in events:
        if isinstance(event, BlockStored):
            copies.update(event.block_hashes)
        elif isinstance(event, AllBlocksCleared):
            copies.clear()
        else:
            copies[event.block_hash] -= 1
            assert copies[event.block_hash] >= 0


def check_blocks(engine: Engine) -> None:
    """Used and free blocks are all blocks; references are what requests hold."""
    users = Counter(block for request in engine.running for block in request.blocks)
    assert all(block.references == count for block, count in users.items())
    assert len(users) + engine.pool.free == engine.pool.capacity
    for request in engine.running:
        assert request.cached_tokens < len(request.prompt)
        assert len(request.blocks) * engine.config.block_size >= request.computed
