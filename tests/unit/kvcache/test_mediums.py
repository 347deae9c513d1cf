"""Blocks outside the GPU: whose they are, and how far a hit goes on in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.kvcache.index import PrefixIndex
from epp.reporter import Reporter
from tests.unit.kvcache.feeding import PROMPT, A, B, C, Recorder, feed, hit_tokens, removed, request, stored


@pytest.mark.parametrize("medium", ["external", "lmcache", "a-medium-to-come"])
def test_other_mediums_are_passed_over(index: PrefixIndex, reporter: Recorder, medium: str) -> None:
    """What is held in a store that is no endpoint's own is no hit, and what such a store drops does not touch others."""
    feed(index, A, stored([1, 2], PROMPT[:8], medium=medium), stored([3], [], size=0, medium=medium))
    assert hit_tokens(index, PROMPT) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]), removed(1, medium=medium))
    assert hit_tokens(index, PROMPT) == [4, 0, 0]
    assert reporter.problems == []


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
