"""Blocks that an endpoint is about to compute count for a while, apart from those it was seen to hold."""

import pytest

from epp.kvcache.events import AllCleared
from epp.kvcache.index import PrefixIndex
from tests.unit.kvcache.feeding import PROMPT, A, B, feed, hit_tokens, removed, request, stored


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
