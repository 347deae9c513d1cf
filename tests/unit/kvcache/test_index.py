"""Who holds what, case by case; the random streams are in test_index_stateful.py, the real ones in test_recordings.py."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import DecisionId, EndpointId, EngineHash, TokenizedRequest, TokenState
from epp.kvcache import tiers
from epp.kvcache.events import AllCleared, Batch, BlockRemoved, BlockStored, Event
from epp.kvcache.holdings import MAX_GROUPS
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import Extras, engine_hash, pack_tokens
from epp.kvcache.predictions import Answered, Predictions, Settled, Verdict
from epp.kvcache.tiers import MAX_ORPHANS, MAX_UNREMOVED
from epp.reporter import Reporter

A, B, C = EndpointId("ns/a"), EndpointId("ns/b"), EndpointId("ns/c")
PROMPT = list(range(1, 13))
"""Three blocks of four tokens."""


class Recorder(Reporter):
    """Remembers the problems reported."""

    def __init__(self) -> None:
        self.problems: list[tuple[EndpointId, str]] = []

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        self.problems.append((endpoint, reason))


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture
def index(reporter: Recorder) -> PrefixIndex:
    return PrefixIndex(reporter, default_block_size=4)


def stored(
    hashes: Sequence[int],
    tokens: Sequence[int],
    *,
    parent: int | None = None,
    size: int = 4,
    lora: str | None = None,
    medium: str = "gpu",
    extras: list[Extras] | None = None,
    group: int | None = 0,
    kind: str | None = "full_attention",
) -> BlockStored:
    hashes_ = [EngineHash(h) for h in hashes]
    parent_ = None if parent is None else EngineHash(parent)
    return BlockStored(hashes_, parent_, pack_tokens(tokens), size, lora, medium, extras, group, kind)


def removed(*hashes: int, medium: str = "gpu", group: int | None = 0) -> BlockRemoved:
    return BlockRemoved([EngineHash(h) for h in hashes], medium, group)


def feed(index: PrefixIndex, endpoint: EndpointId, *events: Event, rank: int = 0, errors: tuple[str, ...] = ()) -> None:
    index.apply(endpoint, rank, Batch(1.0, rank, list(events), errors))


def request(*prompts: list[int], lora: str | None = None, salt: str | None = None) -> TokenizedRequest:
    return TokenizedRequest(TokenState.EXACT, prompts, lora=lora, cache_salt=salt)


def hit_tokens(index: PrefixIndex, *prompts: list[int], now: float = 0.0, lora: str | None = None) -> list[int]:
    """What A, B and C would hit, each prompt lengthened by a token nobody cached, so that the last-token rule is out of play."""
    return index.match(request(*([*prompt, 0] for prompt in prompts), lora=lora), [A, B, C], now).tokens


def test_each_endpoint_is_credited_with_its_own_contiguous_prefix(index: PrefixIndex) -> None:
    """All of it, a part of it, and a part that lacks the first block."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([91, 92], PROMPT[:8]))
    feed(index, C, stored([71, 72, 73], PROMPT), removed(71))

    assert hit_tokens(index, PROMPT) == [12, 8, 0]
    assert [index.blocks(endpoint) for endpoint in (A, B, C)] == [3, 2, 2]


def test_the_last_token_of_a_prompt_is_never_a_hit(index: PrefixIndex) -> None:
    """vLLM computes it again, and with it its whole block."""
    feed(index, A, stored([1, 2, 3], PROMPT))

    hits = index.match(request(PROMPT), [A], 0.0)
    assert (hits.tokens, hits.blocks, hits.block_sizes) == ([8], [3], [4])


def test_prompts_of_one_request_are_summed(index: PrefixIndex) -> None:
    """A batch of prompts goes to one endpoint; short and empty ones count nothing."""
    feed(index, A, stored([1, 2, 3], PROMPT), stored([4], [9, 9, 9, 9]))

    assert hit_tokens(index, PROMPT, [9, 9, 9, 9], [1, 2], []) == [16, 0, 0]


def test_a_request_without_tokens_matches_nothing(index: PrefixIndex) -> None:
    """So does a prompt with ids that are no token ids, which the engine will refuse."""
    feed(index, A, stored([1], PROMPT[:4]))

    assert index.match(TokenizedRequest(TokenState.ABSENT), [A], 0.0).tokens == [0]
    assert hit_tokens(index, [1, 2, 3, 1 << 40]) == [0, 0, 0]


def test_endpoints_with_different_block_sizes(index: PrefixIndex) -> None:
    """Each is matched in its own blocks, learnt from its events."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([1, 2, 3, 4, 5], PROMPT[:10], size=2))
    index.set_block_size(C, 6)
    index.speculate(index.match(request(PROMPT), [C], 0.0), C, until=1.0)

    assert [index.block_size(endpoint) for endpoint in (A, B, C)] == [4, 2, 6]
    assert hit_tokens(index, PROMPT) == [12, 10, 12]
    assert hit_tokens(index, PROMPT[:11]) == [8, 10, 6]


def test_events_know_the_block_size_better_than_metrics(index: PrefixIndex) -> None:
    """An engine that shards its context publishes larger blocks than its cache_config_info says."""
    index.set_block_size(A, 2)
    feed(index, A, stored([1], PROMPT[:4]))
    index.set_block_size(A, 2)

    assert hit_tokens(index, PROMPT[:4]) == [4, 0, 0]


@pytest.mark.parametrize("lora", [None, "adapter"])
def test_lora_and_base_model_do_not_share(index: PrefixIndex, lora: str | None) -> None:
    """The same tokens under another adapter are other blocks."""
    feed(index, A, stored([1, 2, 3], PROMPT, lora=lora))

    assert hit_tokens(index, PROMPT, lora=lora) == [12, 0, 0]
    assert hit_tokens(index, PROMPT, lora="adapter" if lora is None else None) == [0, 0, 0]


def test_multimodal_blocks_are_not_taken_for_text(index: PrefixIndex) -> None:
    """Placeholder tokens are alike for all images: only the image tells the block."""
    feed(index, A, stored([1, 2, 3], PROMPT, extras=[(), (("mm", "image", 1),), ()]))

    assert hit_tokens(index, PROMPT) == [4, 0, 0]


def test_every_physical_copy_counts(index: PrefixIndex) -> None:
    """A block stored twice is held until both copies are gone, and one removal too many does no harm."""
    feed(index, A, stored([1], PROMPT[:4]), stored([1], PROMPT[:4]), stored([1], PROMPT[:4]))
    feed(index, A, removed(1), removed(1))
    assert hit_tokens(index, PROMPT[:4]) == [4, 0, 0]

    feed(index, A, removed(1), removed(1))
    assert hit_tokens(index, PROMPT[:4]) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]))
    assert hit_tokens(index, PROMPT[:4]) == [4, 0, 0]


def test_two_engine_hashes_can_mean_one_block(index: PrefixIndex) -> None:
    """A LoRA loaded from another path has other hashes and the same name: the block goes with the last of them."""
    feed(index, A, stored([1], PROMPT[:4], lora="a"), stored([2], PROMPT[:4], lora="a"), removed(1))
    assert hit_tokens(index, PROMPT[:4], lora="a") == [4, 0, 0]

    feed(index, A, removed(2))
    assert hit_tokens(index, PROMPT[:4], lora="a") == [0, 0, 0]


class Said:
    """Keeps how predictions came out."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def settled(self, settled: Settled) -> None:
        self.verdicts.append(settled.verdict)

    def answered(self, answered: Answered) -> None: ...

    def unusable(self, endpoint: EndpointId, reason: str) -> None: ...

    def forgotten(self, endpoint: EndpointId) -> None: ...


@pytest.mark.parametrize(("dropped", "verdict"), [((1,), Verdict.CONTRADICTED), ((1, 2), Verdict.CONFIRMED)])
def test_a_block_that_another_hash_still_means_is_not_taken_for_evicted(
    reporter: Recorder, dropped: tuple[int, ...], verdict: Verdict
) -> None:
    """An engine that computes it again although it holds it has lost its cache; one that dropped all of its hashes has not."""
    said = Said()
    index = PrefixIndex(reporter, default_block_size=4, predictions=Predictions(lambda: 0.0, outcomes=said, prefill_ended=lambda _: None))
    feed(index, A, stored([1], PROMPT[:4], lora="a"), stored([2], PROMPT[:4], lora="a"))
    index.predict(index.match(request(PROMPT[:5], lora="a"), [A], 0.0), A, DecisionId("1"), "m", 0.0, 0.0)
    feed(index, A, removed(*dropped), stored([3], PROMPT[:4], lora="a"))
    index.answer_ended(DecisionId("1"))
    index.sweep(100.0)

    assert said.verdicts == [verdict]


def test_all_blocks_cleared(index: PrefixIndex) -> None:
    """What comes after it in the same batch is held again; other endpoints are not touched."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([1, 2, 3], PROMPT))
    feed(index, A, AllCleared(), stored([1], PROMPT[:4]))

    assert hit_tokens(index, PROMPT) == [4, 12, 0]
    assert index.blocks(A) == 1


def test_a_cleared_or_removed_endpoint_is_forgotten_and_can_come_back(index: PrefixIndex) -> None:
    """A restarted engine may have another block size; endpoints that come later are not mistaken for earlier ones."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([1, 2, 3], PROMPT))
    index.clear(A)
    index.remove(B)
    feed(index, C, stored([1], PROMPT[:4]))
    assert hit_tokens(index, PROMPT) == [0, 0, 4]
    assert [index.blocks(endpoint) for endpoint in (A, B, C)] == [0, 0, 1]

    while index.sweep(0.0, limit=1):
        assert hit_tokens(index, PROMPT) == [0, 0, 4]
    feed(index, A, stored([1, 2], PROMPT[:4], size=2))
    feed(index, B, stored([1, 2], PROMPT[:8]))
    assert hit_tokens(index, PROMPT) == [4, 8, 4]


def test_ranks_of_one_endpoint_do_not_add_up(index: PrefixIndex) -> None:
    """A request runs on one rank, so the best rank counts, and one that restarts takes only its own blocks along."""
    feed(index, A, stored([1], PROMPT[:4]), rank=0)
    feed(index, A, stored([2, 3], PROMPT[:8]), rank=1)
    assert hit_tokens(index, PROMPT) == [8, 0, 0]

    index.clear(A, 1)
    assert hit_tokens(index, PROMPT) == [4, 0, 0]


@pytest.mark.parametrize("kind", [None, "full_attention", "mla_attention", "sink_full_attention"])
def test_full_attention_is_indexed(index: PrefixIndex, kind: str | None) -> None:
    """Engines that do not say count as full attention."""
    feed(index, A, stored([1], PROMPT[:4], kind=kind))

    assert hit_tokens(index, PROMPT) == [4, 0, 0]


@pytest.mark.parametrize("kind", ["sliding_window", "mamba", "chunked_local_attention", "kind-to-come"])
def test_other_groups_are_passed_over(index: PrefixIndex, reporter: Recorder, kind: str) -> None:
    """Groups share hashes: what another group stores or removes leaves the full-attention group's blocks alone."""
    feed(index, A, stored([1], PROMPT[:4], kind=kind, group=1))
    assert hit_tokens(index, PROMPT) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]), stored([], PROMPT[:4], kind=kind, group=1), removed(1, group=1))
    assert hit_tokens(index, PROMPT) == [4, 0, 0]
    assert reporter.problems == []


def test_a_second_full_attention_group_does_not_count_twice(index: PrefixIndex) -> None:
    """Several groups announce the same block; it is gone when the counted one drops it."""
    feed(index, A, stored([1], PROMPT[:4], group=0), stored([1], PROMPT[:4], group=2), removed(1, group=0))

    assert hit_tokens(index, PROMPT) == [0, 0, 0]


@pytest.mark.parametrize("medium", ["external", "lmcache", "a-medium-to-come"])
def test_other_mediums_are_passed_over(index: PrefixIndex, reporter: Recorder, medium: str) -> None:
    """What is held in a store that is no endpoint's own is no hit, and what such a store drops does not touch others."""
    feed(index, A, stored([1, 2], PROMPT[:8], medium=medium), stored([3], [], size=0, medium=medium))
    assert hit_tokens(index, PROMPT) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]), removed(1, medium=medium))
    assert hit_tokens(index, PROMPT) == [4, 0, 0]
    assert reporter.problems == []


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (stored([2], PROMPT[:3]), "not_dense"),
        (stored([2], PROMPT[:8]), "not_dense"),
        (stored([2], [], size=0), "not_dense"),
        (stored([2, 3], PROMPT[:4], size=2), "block_size"),
        (stored([2], PROMPT[:4], parent=77), "orphan"),
    ],
)
def test_what_cannot_be_placed_is_reported(index: PrefixIndex, reporter: Recorder, event: BlockStored, reason: str) -> None:
    """The rest of the batch is applied, and the decoder's own findings are passed on."""
    feed(index, A, stored([1], PROMPT[:4]), event, stored([9], PROMPT[4:8], parent=1), errors=("token_ids",))

    assert reporter.problems == [(A, "token_ids"), (A, reason)]
    assert hit_tokens(index, PROMPT) == [8, 0, 0]


def test_blocks_that_wait_for_their_parent(index: PrefixIndex) -> None:
    """Whatever the order in which a lost head comes back, all that is still held is found; what was removed meanwhile is not."""
    feed(index, A, stored([3, 4, 5], [*PROMPT[8:], *range(20, 28)], parent=2), removed(5))
    feed(index, A, stored([2], PROMPT[4:8], parent=1))
    assert hit_tokens(index, PROMPT) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]))
    assert hit_tokens(index, [*PROMPT, *range(20, 28)]) == [16, 0, 0]
    assert index.blocks(A) == 4


def test_waiting_copies_are_counted(index: PrefixIndex) -> None:
    """A block stored twice before its parent showed up leaves with its second removal."""
    feed(index, A, stored([2], PROMPT[4:8], parent=1), stored([2], PROMPT[4:8], parent=1), stored([1], PROMPT[:4]), removed(2))
    assert hit_tokens(index, PROMPT) == [8, 0, 0]

    feed(index, A, removed(2))
    assert hit_tokens(index, PROMPT) == [4, 0, 0]


def test_a_span_whose_parent_is_unknown_can_still_meet_known_blocks(index: PrefixIndex) -> None:
    """From the first block known from another copy on, the span is placed."""
    feed(index, A, stored([1, 2], PROMPT[:8]), removed(1))
    feed(index, A, stored([2, 3], PROMPT[4:], parent=1), stored([1], PROMPT[:4]))

    assert hit_tokens(index, PROMPT) == [12, 0, 0]


def test_waiting_blocks_are_bounded(index: PrefixIndex, reporter: Recorder) -> None:
    """An engine that never names a parent costs a bounded amount of memory; the oldest give way."""
    for i in range(MAX_ORPHANS + 1):
        feed(index, A, stored([10 + i], [i] * 4, parent=5 if i == 0 else 6))
    feed(index, A, stored([5, 6], PROMPT[:8]))

    assert [reason for _, reason in reporter.problems].count("orphan_dropped") == 1
    assert index.blocks(A) == MAX_ORPHANS + 2
    assert hit_tokens(index, [*PROMPT[:4], 0, 0, 0, 0]) == [4, 0, 0]
    assert hit_tokens(index, [*PROMPT[:8], 1, 1, 1, 1]) == [12, 0, 0]


def test_a_speculated_prompt_counts_until_its_time_is_over(index: PrefixIndex) -> None:
    """Apart from confirmed blocks: events neither end it nor are ended by it."""
    feed(index, A, stored([1], PROMPT[:4]))
    hits = index.match(request(PROMPT), [A, B], now=10.0)
    index.speculate(hits, A, until=12.0)
    index.speculate(hits, B, until=12.0)
    assert hit_tokens(index, PROMPT, now=11.9) == [12, 12, 0]

    feed(index, B, stored([1, 2], PROMPT[:8]), removed(2))
    assert hit_tokens(index, PROMPT, now=11.9) == [12, 12, 0]
    assert hit_tokens(index, PROMPT, now=12.0) == [4, 4, 0]
    assert index.sweep(12.0) is False
    assert hit_tokens(index, PROMPT, now=11.9) == [4, 4, 0]


def test_confirmed_blocks_continue_a_speculated_prefix(index: PrefixIndex) -> None:
    """Speculated up to the second block, confirmed from there on: one run."""
    feed(index, A, stored([1, 2, 3], PROMPT), removed(1))
    index.speculate(index.match(request(PROMPT[:8]), [A], 0.0), A, until=1.0)

    assert hit_tokens(index, PROMPT) == [12, 0, 0]


@pytest.mark.parametrize("restart", [True, False])
def test_speculation_ends_with_the_cache(index: PrefixIndex, *, restart: bool) -> None:
    """A restart or reset drops what was about to be computed as well."""
    index.speculate(index.match(request(PROMPT), [A], 0.0), A, until=9.0)
    if restart:
        index.clear(A)
    else:
        feed(index, A, AllCleared())

    assert hit_tokens(index, PROMPT) == [0, 0, 0]


def test_an_endpoint_that_failed_holds_what_its_events_showed(index: PrefixIndex) -> None:
    """What was only expected of it counts no longer; others do not notice, and it may be expected to compute again."""
    feed(index, A, stored([1], PROMPT[:4]))
    hits = index.match(request(PROMPT), [A, B], 0.0)
    for endpoint in (A, B):
        index.speculate(hits, endpoint, until=9.0)
    index.unspeculate(A)
    assert hit_tokens(index, PROMPT) == [4, 12, 0]
    index.speculate(hits, A, until=9.0)
    assert hit_tokens(index, PROMPT) == [12, 12, 0]


def test_a_later_speculation_never_shortens_an_earlier_one(index: PrefixIndex) -> None:
    """The blocks of a short prompt stay as long as those of the longer one they begin."""
    index.speculate(index.match(request(PROMPT), [A], 0.0), A, until=9.0)
    index.speculate(index.match(request(PROMPT[:4]), [A], 0.0), A, until=1.0)

    index.sweep(5.0)
    assert hit_tokens(index, PROMPT, now=5.0) == [12, 0, 0]


def blocks_of(*numbers: int, medium: str = "gpu") -> BlockStored:
    """One prompt, a block for each number."""
    tokens = pack_tokens([number for number in numbers for _ in range(4)])
    return BlockStored([engine_hash(number) for number in numbers], None, tokens, 4, medium=medium)


def test_a_medium_that_tells_no_removals_keeps_what_is_new(index: PrefixIndex) -> None:
    """Stores that are shared, or never say what they drop, cost a bounded amount of memory; the oldest give way."""
    for start in range(0, 2 * MAX_UNREMOVED, 500):
        feed(index, A, blocks_of(*range(start, start + 500), medium="storage"))

    assert index.blocks(A) == MAX_UNREMOVED
    start = 2 * MAX_UNREMOVED - 500
    assert hit_tokens(index, [start] * 4 + [start + 1] * 4) == [8, 0, 0]


def test_what_gives_way_where_nobody_tells_removals(index: PrefixIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored first; naming a block again takes no room, and makes it no younger. The other mediums keep what they have."""
    monkeypatch.setattr(tiers, "MAX_UNREMOVED", 3)
    for medium in ("gpu", "cpu"):
        for number in (1, 2, 3):
            feed(index, A, blocks_of(number, medium=medium))
    feed(index, A, removed(*map(engine_hash, (1, 2, 3)), group=None), blocks_of(1, medium="cpu"))
    assert [hit_tokens(index, [number] * 4)[0] for number in (1, 2, 3)] == [4, 4, 4]

    feed(index, A, blocks_of(4, medium="cpu"), blocks_of(5, medium="cpu"))
    assert [hit_tokens(index, [number] * 4)[0] for number in (1, 2, 3, 4, 5)] == [0, 0, 4, 4, 4]


def test_a_medium_that_begins_to_tell_removals(index: PrefixIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on nothing has to give way, and what was stored before is found by its removal."""
    monkeypatch.setattr(tiers, "MAX_UNREMOVED", 3)
    feed(index, A, blocks_of(0), *(blocks_of(number, medium="cpu") for number in (1, 2, 3)))
    feed(index, A, removed(engine_hash(1), medium="cpu", group=None), *(blocks_of(number, medium="cpu") for number in (4, 5, 6)))
    feed(index, A, removed(engine_hash(2), medium="cpu", group=None))

    assert [hit_tokens(index, [number] * 4)[0] for number in (1, 2, 3, 4, 5, 6)] == [0, 0, 4, 4, 4, 4]


def test_an_engine_that_says_it_holds_more_than_any_can(reporter: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the bound on nothing more of it is indexed, which is reported; what it drops makes room."""
    monkeypatch.setattr(tiers, "MAX_BLOCKS", 100)
    index = PrefixIndex(reporter, default_block_size=4)
    for number in range(1_000):
        feed(index, A, blocks_of(number))

    assert index.blocks(A) == 100
    assert set(reporter.problems) == {(A, "too_many_blocks")}
    feed(index, A, BlockRemoved([engine_hash(number) for number in range(1_000)]), stored([1], PROMPT[:4], group=None))
    assert index.blocks(A) == 1


def test_an_engine_with_groups_without_end(index: PrefixIndex, reporter: Recorder) -> None:
    """No more groups than any model has are followed."""
    for number in range(2 * MAX_GROUPS):
        feed(index, A, stored([1], PROMPT[:4], group=number))

    assert index.blocks(A) == MAX_GROUPS
    assert set(reporter.problems) == {(A, "too_many_groups")}


def test_an_endpoint_s_blocks_in_gpu_memory_are_counted_by_rank(index: PrefixIndex) -> None:
    """They are held against the number of blocks one engine has, which all its groups share."""
    feed(index, A, stored([1, 2], PROMPT[:8], group=0), stored([1], PROMPT[:4], group=1), stored([1, 2], PROMPT[:8], medium="cpu"))
    feed(index, A, stored([3], PROMPT[:4]), rank=1)

    assert index.gpu_blocks(A) == {0: 3, 1: 1}
    assert index.blocks(A) == 6


def test_many_endpoints_that_offload(index: PrefixIndex) -> None:
    """Each goes on from the end of its own run, whatever the others hold."""
    feed(index, A, stored([1, 2, 3], PROMPT), stored([1, 2, 3], PROMPT, medium="cpu"), removed(3))
    feed(index, B, stored([1, 2, 3], PROMPT), stored([1, 2], PROMPT[:8], medium="cpu"), removed(2))
    feed(index, C, stored([1, 2, 3], PROMPT, medium="storage"))
    hits = index.match(request([*PROMPT, 0]), [A, B, C], 0.0)

    assert hits.tokens == [12, 8, 12]
    assert hits.offloaded == {"cpu": [4, 4, 0], "storage": [0, 0, 12]}
    assert (hits.blocks, hits.confirmed) == ([3, 2, 3], [2, 1, 0])


def test_an_engine_that_clears_its_cache_again_and_again(index: PrefixIndex) -> None:
    """It leaves nothing behind that would have to be freed later, all at once."""
    for _ in range(2_000):
        feed(index, A, stored([1, 2, 3], PROMPT), AllCleared())

    assert not index.sweep(0.0, limit=1)
    assert hit_tokens(index, PROMPT) == [0, 0, 0]


held_blocks = st.sets(st.integers(0, 7))


@given(st.lists(st.tuples(held_blocks, held_blocks, held_blocks), min_size=3, max_size=3), st.integers(0, 8))
def test_random_holdings_in_all_mediums(fleet: list[tuple[set[int], set[int], set[int]]], sent: int) -> None:
    """For any endpoints with any holes, a lookup is what walking the blocks one by one gives."""
    index = PrefixIndex(Reporter(), default_block_size=4)
    tokens, everything = list(range(32)), set(range(8))
    for endpoint, mediums in zip((A, B, C), fleet, strict=True):
        feed(index, endpoint, stored(range(8), tokens))
        for medium in ("cpu", "storage"):
            feed(index, endpoint, stored(range(8), tokens, medium=medium))
        for medium, held in zip(("gpu", "cpu", "storage"), mediums, strict=True):
            feed(index, endpoint, removed(*(everything - held), medium=medium))
    index.speculate(index.match(request(tokens[: sent * 4]), [A], 0.0), A, until=1.0)
    hits = index.match(request([*tokens, 0]), [A, B, C], 0.0)

    for i, (gpu, cpu, storage) in enumerate(fleet):
        at = next(block for block in range(9) if block not in gpu)
        if i == 0 and sent > at:
            at = next(block for block in range(sent, 9) if block not in gpu)
        for medium, there in (("gpu", set[int]()), ("cpu", cpu), ("storage", cpu | storage)):
            end = next(block for block in range(at, 9) if block not in there)
            assert hits.offloaded.get(medium, [0, 0, 0])[i] == (end - at) * 4
            at = end
        assert hits.tokens[i] == at * 4
