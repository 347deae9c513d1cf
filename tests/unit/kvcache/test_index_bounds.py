"""What engines may make the index remember is bounded, whatever they say, and what gives way is the oldest."""

import pytest

from epp.kvcache import tiers
from epp.kvcache.events import AllCleared, BlockRemoved, BlockStored
from epp.kvcache.holdings import MAX_GROUPS
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import engine_hash, pack_tokens
from epp.kvcache.tiers import MAX_ORPHANS, MAX_UNREMOVED
from tests.unit.kvcache.feeding import PROMPT, A, Recorder, feed, hit_tokens, removed, stored


def blocks_of(*numbers: int, medium: str = "gpu") -> BlockStored:
    """One prompt, a block for each number."""
    tokens = pack_tokens([number for number in numbers for _ in range(4)])
    return BlockStored([engine_hash(number) for number in numbers], None, tokens, 4, medium=medium)


def test_waiting_blocks_are_bounded(index: PrefixIndex, reporter: Recorder) -> None:
    """An engine that never names a parent costs a bounded amount of memory; the oldest give way."""
    for i in range(MAX_ORPHANS + 1):
        feed(index, A, stored([10 + i], [i] * 4, parent=5 if i == 0 else 6))
    feed(index, A, stored([5, 6], PROMPT[:8]))

    assert [reason for _, reason in reporter.problems].count("orphan_dropped") == 1
    assert index.blocks(A) == MAX_ORPHANS + 2
    assert hit_tokens(index, [*PROMPT[:4], 0, 0, 0, 0]) == [4, 0, 0]
    assert hit_tokens(index, [*PROMPT[:8], 1, 1, 1, 1]) == [12, 0, 0]


def test_a_medium_that_tells_no_removals_keeps_what_is_new(index: PrefixIndex) -> None:
    """Stores that are shared, or never say what they drop, cost a bounded amount of memory; the oldest give way."""
    for start in range(0, 2 * MAX_UNREMOVED, 500):
        feed(index, A, blocks_of(*range(start, start + 500), medium="storage"))

    assert index.blocks(A) == MAX_UNREMOVED
    start = 2 * MAX_UNREMOVED - 500
    assert hit_tokens(index, [start] * 4 + [start + 1] * 4) == [8, 0, 0]


def test_what_gives_way_where_nobody_tells_removals(index: PrefixIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored first; naming a block again takes no room, and makes it no younger."""
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


def test_an_engine_that_clears_its_cache_again_and_again(index: PrefixIndex) -> None:
    """It leaves nothing behind that would have to be freed later, all at once."""
    for _ in range(2_000):
        feed(index, A, stored([1, 2, 3], PROMPT), AllCleared())

    assert not index.sweep(0.0, limit=1)
    assert hit_tokens(index, PROMPT) == [0, 0, 0]
