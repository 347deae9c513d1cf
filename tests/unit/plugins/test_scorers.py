"""Each scorer's formula (spec/plugins.md 5), and what every scorer must hold to."""

from collections.abc import Sequence
from typing import Any

import pytest

from epp.domain import Decision, DecisionId, EndpointId, PrefixMatch, ProfileResult
from epp.plugins.scorers.active_request import ActiveRequestParams, ActiveRequestScorer
from epp.plugins.scorers.kv_cache_utilization import KVCacheUtilizationScorer
from epp.plugins.scorers.no_hit_lru import NoHitLruParams, NoHitLruScorer
from epp.plugins.scorers.prefix_cache import PrefixCacheParams, PrefixCacheScorer
from epp.plugins.scorers.queue import QueueScorer
from epp.scheduling.interfaces import Cycle, InFlight, Scorer, in_flight_key, prefix_match_key
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators
from epp.testing.builders import make_cycle, make_endpoint
from epp.testing.plugins import check_scorer

NONE = Collaborators()


def active_request(**params: Any) -> ActiveRequestScorer:
    return ActiveRequestScorer("active-request-scorer", ActiveRequestParams(**params), NONE)


def prefix_cache(**params: Any) -> PrefixCacheScorer:
    return PrefixCacheScorer("prefix-cache-scorer", PrefixCacheParams(prefix_match_info_producer_name="p", **params), NONE)


def no_hit_lru(**params: Any) -> NoHitLruScorer:
    return NoHitLruScorer("no-hit-lru-scorer", NoHitLruParams(prefix_match_info_producer_name="p", **params), NONE)


def queue() -> QueueScorer:
    return QueueScorer("queue-scorer", NoParams(), NONE)


def kv_cache_utilization() -> KVCacheUtilizationScorer:
    return KVCacheUtilizationScorer("kv-cache-utilization-scorer", NoParams(), NONE)


@pytest.mark.parametrize("make", [active_request, prefix_cache, no_hit_lru, queue, kv_cache_utilization])
def test_every_scorer_keeps_the_contract(make: type[Scorer]) -> None:
    """Length, range, determinism, nothing changed; for none, one and many endpoints, filtered or not, with data or without."""
    check_scorer(make)


def test_the_length_of_a_match_keeps_the_contract_too() -> None:
    """The same for the other half of the prefix score."""
    check_scorer(lambda: prefix_cache(match_length_weight=0.7, match_length_scale_tokens=64))


@pytest.mark.parametrize(
    ("waiting", "scores"),
    [([0, 5, 10], [1.0, 0.5, 0.0]), ([3, 3], [1.0, 1.0]), ([7], [1.0]), ([], [])],
)
def test_queue_scorer_spreads_candidates_between_shortest_and_longest(waiting: list[int], scores: list[float]) -> None:
    """Equal queues are equally good."""
    cycle = make_cycle([make_endpoint(i, waiting=count) for i, count in enumerate(waiting)])
    assert queue().score(cycle, cycle.endpoints) == scores


def test_kv_cache_scorer_rates_the_free_share() -> None:
    """A never scraped endpoint counts as empty."""
    cycle = make_cycle([make_endpoint(0), make_endpoint(1, kv_cache_usage=0.75), make_endpoint(2, kv_cache_usage=1.0)])
    assert kv_cache_utilization().score(cycle, cycle.endpoints) == [1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("params", "counts", "scores"),
    [
        ({}, [0, 2, 4], [1.0, 0.5, 0.0]),
        ({}, [0, 0], [1.0, 1.0]),
        ({"idle_threshold": 2}, [0, 2, 4], [1.0, 1.0, 0.0]),
        ({"idle_threshold": -5}, [0, 1], [1.0, 0.0]),
        ({"max_busy_score": 0.5}, [0, 1, 4], [1.0, 0.375, 0.0]),
        ({"max_busy_score": 7.0}, [1, 4], [0.75, 0.0]),
    ],
)
def test_active_request_scorer_prefers_idle_then_less_busy(params: dict[str, Any], counts: list[int], scores: list[float]) -> None:
    """Up to the threshold an endpoint is idle; above, the busiest candidate is the measure."""
    cycle = make_cycle([make_endpoint(i) for i in range(len(counts))])
    cycle.put(in_flight_key("inflight-load-producer"), InFlight(counts, [0] * len(counts)))
    assert active_request(**params).score(cycle, cycle.endpoints) == scores


def test_active_request_scorer_without_data_finds_everybody_idle() -> None:
    """Missing load is no load."""
    cycle = make_cycle([make_endpoint(0), make_endpoint(1)])
    assert active_request().score(cycle, cycle.endpoints) == [1.0, 1.0]


def matched(cycle: Cycle, blocks: Sequence[int], total: int, block_size: int = 16) -> Cycle:
    tokens = [held * block_size for held in blocks]
    cycle.put(prefix_match_key("p"), PrefixMatch(block_size, total, list(blocks), total * block_size, tokens))
    return cycle


@pytest.mark.parametrize(
    ("params", "total", "scores"),
    [
        ({}, 8, [0.0, 0.5, 1.0]),
        ({}, 0, [0.0, 0.0, 0.0]),
        ({"match_length_weight": 1.0, "match_length_scale_tokens": 64}, 8, [0.0, 1.0, 1.0]),
        ({"match_length_weight": 1.0, "match_length_scale_tokens": 256}, 8, [0.0, 0.0625, 0.25]),
        ({"match_length_weight": 0.5, "match_length_scale_tokens": 128}, 8, [0.0, 0.375, 1.0]),
    ],
)
def test_prefix_scorer_mixes_ratio_and_length_of_the_match(params: dict[str, Any], total: int, scores: list[float]) -> None:
    """Half of the prompt held is 0.5; length counts squared, up to the scale."""
    cycle = matched(make_cycle([make_endpoint(i) for i in range(3)]), [0, 4, 8], total)
    assert prefix_cache(**params).score(cycle, cycle.endpoints) == scores


def test_prefix_scorer_of_filtered_candidates_reads_their_own_matches() -> None:
    """Data is parallel to all endpoints; a filter must not shift it."""
    cycle = matched(make_cycle([make_endpoint(i) for i in range(3)]), [1, 2, 4], 4)
    assert prefix_cache().score(cycle, cycle.endpoints[1:]) == [0.5, 1.0]


def test_prefix_scorer_rates_what_blocks_are_worth() -> None:
    """Eight of ten points for a whole prompt in CPU memory; more than all of it is never needed."""
    cycle = make_cycle([make_endpoint(i) for i in range(3)])
    cycle.put(prefix_match_key("p"), PrefixMatch(16, 10, [10, 10, 10], 170, [160] * 3, [8.0, 10.0, 10.6]))
    assert prefix_cache().score(cycle, cycle.endpoints) == [0.8, 1.0, 1.0]


def choose(scorer: NoHitLruScorer, cycle: Cycle, number: int) -> None:
    """One cycle of the scorer that ends with this endpoint."""
    scorer.score(cycle, cycle.endpoints)
    primary = ProfileResult("default", cycle.endpoints, [], [], [cycle.endpoints[number]])
    scorer.decided(cycle, Decision(DecisionId("d"), "r", primary, {"default": primary}, None, None))


def fleet() -> Cycle:
    return make_cycle([make_endpoint(i) for i in range(3)])


def test_cold_prompts_go_round_and_warm_ones_leave_no_trace() -> None:
    """Never used endpoints first, in order; then the one used longest ago. A hit anywhere makes the scorer neutral."""
    scorer = no_hit_lru()
    assert scorer.score(fleet(), fleet().endpoints) == [1.0, 0.5, 0.0]
    choose(scorer, fleet(), 0)
    assert scorer.score(fleet(), fleet().endpoints) == [0.0, 1.0, 0.5]
    choose(scorer, fleet(), 2)
    assert scorer.score(fleet(), fleet().endpoints) == [0.5, 1.0, 0.0]
    warm = matched(fleet(), [0, 1, 0], 4)
    assert scorer.score(warm, warm.endpoints) == [0.5, 0.5, 0.5]
    choose(scorer, warm, 1)
    assert scorer.score(fleet(), fleet().endpoints) == [0.5, 1.0, 0.0]


def test_a_used_endpoint_is_ranked_among_all_remembered_ones() -> None:
    """Older endpoints that are no candidates push a used one down, but never below 0; a removed one is forgotten."""
    scorer = no_hit_lru()
    for number in range(3):
        choose(scorer, fleet(), number)
    cycle = fleet()
    assert scorer.score(cycle, cycle.endpoints[1:]) == [0.0, 0.0]
    scorer.endpoint_removed(EndpointId("default/pod-0"))
    assert scorer.score(cycle, cycle.endpoints[1:]) == [1.0, 0.0]


def test_the_lru_is_bounded() -> None:
    """The oldest of more than lruSize endpoints counts as never used again."""
    scorer = no_hit_lru(lru_size=1)
    choose(scorer, fleet(), 0)
    choose(scorer, fleet(), 1)
    assert scorer.score(fleet(), fleet().endpoints) == [1.0, 0.0, 0.5]


def test_the_prefill_endpoint_counts_as_used() -> None:
    """Where prefill is disaggregated, both endpoints will hold the prompt."""
    scorer, cycle = no_hit_lru(), fleet()
    scorer.score(cycle, cycle.endpoints)
    decode, prefill = (ProfileResult(name, cycle.endpoints, [], [], [cycle.endpoints[i]]) for i, name in enumerate(("decode", "prefill")))
    scorer.decided(cycle, Decision(DecisionId("d"), "r", decode, {"decode": decode, "prefill": prefill}, None, None))
    assert scorer.score(fleet(), fleet().endpoints) == [0.5, 0.0, 1.0]
