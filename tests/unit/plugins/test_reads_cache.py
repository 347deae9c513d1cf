"""Prompts that engines compute anew, whatever they hold: nobody is credited with a hit, and the decision says why."""

from collections.abc import Mapping
from typing import Any

import pytest

from epp.domain import Api, Decision, DecisionId, InferenceRequest, ProfileResult, TokenizedRequest, TokenState
from epp.kvcache.index import PrefixIndex
from epp.plugins.producers.approx_prefix_cache import ApproxPrefixCacheParams, ApproxPrefixCacheProducer
from epp.plugins.producers.inflight_load import InFlightLoadParams, InFlightLoadProducer
from epp.plugins.producers.precise_prefix_cache import PrecisePrefixCacheParams, PrecisePrefixCacheProducer
from epp.plugins.reads_cache import reads_cache
from epp.plugins.scorers.no_hit_lru import NoHitLruParams, NoHitLruScorer
from epp.plugins.scorers.prefix_cache import PrefixCacheParams, PrefixCacheScorer
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle, InFlight, in_flight_key, prefix_match_key
from epp.scheduling.registry import Collaborators
from epp.testing.builders import make_cycle, make_endpoint

FLEET = [make_endpoint(i) for i in range(3)]
NAME = "prefixes"


def request(body: Mapping[str, object] | None, api: Api = Api.CHAT) -> InferenceRequest:
    return InferenceRequest(api, "/", "m", body, 100)


@pytest.mark.parametrize(
    ("api", "body", "reads"),
    [
        (Api.CHAT, None, True),
        (Api.CHAT, {}, True),
        (Api.CHAT, {"logprobs": True, "top_logprobs": 5}, True),
        (Api.CHAT, {"prompt_logprobs": None, "echo": False}, True),
        (Api.CHAT, {"prompt_logprobs": 0}, False),
        (Api.CHAT, {"prompt_logprobs": -1}, False),
        (Api.CHAT, {"echo": True}, False),
        (Api.CHAT, {"echo": True, "top_logprobs": None}, True),
        (Api.COMPLETIONS, {"logprobs": 1}, True),
        (Api.COMPLETIONS, {"echo": True}, True),
        (Api.COMPLETIONS, {"echo": True, "logprobs": 0}, False),
        (Api.COMPLETIONS, {"prompt_logprobs": 1}, False),
        (Api.GENERATE, {"prompt_logprobs": 1}, True),
        (Api.GENERATE, {"sampling_params": None}, True),
        (Api.GENERATE, {"sampling_params": {"logprobs": 1}}, True),
        (Api.GENERATE, {"sampling_params": {"prompt_logprobs": 0}}, False),
        (Api.GENERATE, {"sampling_params": {"prompt_logprob_token_ids": [[1]]}}, False),
        (Api.GENERATE, {"sampling_params": {"skip_reading_prefix_cache": True}}, False),
        (Api.GENERATE, {"sampling_params": {"prompt_logprobs": 1, "skip_reading_prefix_cache": False}}, True),
        (Api.RESPONSES, {"prompt_logprobs": 1}, True),
        (Api.MESSAGES, {"echo": True, "prompt_logprobs": 1}, True),
    ],
)
def test_who_has_its_prompt_computed_anew(api: Api, body: Mapping[str, object] | None, reads: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """As vLLM 0.32 decides, by what its sampling parameters become."""
    assert reads_cache(request(body, api)) is reads


def test_a_request_without_a_body_is_no_matter_of_caches() -> None:
    """A GET."""
    assert reads_cache(None)


@pytest.fixture(params=["precise", "approx"])
def producer(request: pytest.FixtureRequest) -> PrecisePrefixCacheProducer | ApproxPrefixCacheProducer:
    """Both ways to know prefixes."""
    if request.param == "approx":
        return ApproxPrefixCacheProducer(NAME, ApproxPrefixCacheParams(), Collaborators())
    index = PrefixIndex(Reporter(), default_block_size=16)
    return PrecisePrefixCacheProducer(NAME, PrecisePrefixCacheParams(speculative_indexing=True), Collaborators(index))


def cycle_of(producer: Any, body: Mapping[str, object], target: int | None = None) -> Cycle:
    """A cycle for one and the same prompt of 640 tokens; it goes to `target`, if one is given."""
    cycle = make_cycle(FLEET, tokens=TokenizedRequest(TokenState.EXACT, [list(range(640))]), request=request(body), now=1.0)
    producer.produce(cycle)
    if target is not None:
        producer.decided(cycle, decision(cycle, target))
    return cycle


def decision(cycle: Cycle, target: int) -> Decision:
    result = ProfileResult("default", FLEET, [], [], [FLEET[target]])
    return Decision(DecisionId("d"), "r", result, {"default": result}, cycle.request, cycle.tokens)


def test_nobody_is_credited_with_hits_it_cannot_give(producer: Any) -> None:
    """All endpoints score alike, the prompt counts as cold and as work to be done in full; the blocks are there for who comes next."""
    key, lru = prefix_match_key(NAME), NoHitLruParams(prefix_match_info_producer_name=NAME)
    scorer = PrefixCacheScorer("s", PrefixCacheParams(prefix_match_info_producer_name=NAME), Collaborators())
    load = InFlightLoadProducer("load", InFlightLoadParams(prefix_match_info_producer_name=NAME), Collaborators())
    cycle_of(producer, {"prompt_logprobs": 1}, target=1)

    anew = cycle_of(producer, {"prompt_logprobs": 1})
    match = anew.get(key)
    assert match is not None
    assert not match.reads_cache
    assert (match.matched_blocks, match.matched_tokens, list(match.worth)) == ([0, 0, 0], [0, 0, 0], [0, 0, 0])
    assert match.total_tokens == 640
    assert scorer.score(anew, FLEET) == [0.0, 0.0, 0.0]
    assert NoHitLruScorer("s", lru, Collaborators()).score(anew, FLEET) == [1.0, 0.5, 0.0]
    load.decided(anew, decision(anew, 1))
    load.produce(anew)
    assert anew.get(in_flight_key("load")) == InFlight([0, 1, 0], [0, 640, 0])

    next_one = cycle_of(producer, {})
    match = next_one.get(key)
    assert match is not None
    assert match.reads_cache
    assert [score > 0.9 for score in scorer.score(next_one, FLEET)] == [False, True, False]
