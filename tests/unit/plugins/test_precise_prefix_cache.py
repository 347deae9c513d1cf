"""The precise producer: what it asks the index, what it reports, when it abstains and when it speculates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from epp.domain import (
    Api,
    Decision,
    DecisionId,
    EndCause,
    EndpointId,
    InferenceRequest,
    ProfileResult,
    RequestEnd,
    TokenizedRequest,
    TokenState,
    Usage,
)
from epp.plugins.producers.precise_prefix_cache import (
    IndexerConfig,
    KVCacheBackend,
    PrecisePrefixCacheParams,
    PrecisePrefixCacheProducer,
    TokenProcessorConfig,
)
from epp.scheduling.interfaces import Cycle, PrefixHits, prefix_match_key
from epp.scheduling.params import Duration
from epp.scheduling.registry import Collaborators, EmptyIndex
from epp.testing.builders import make_cycle, make_endpoint, make_tokens

FLEET = [make_endpoint(i) for i in range(3)]
NAME = "precise-prefix-cache-producer"


@dataclass
class Hits:
    tokens: list[int]
    offloaded: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Index(EmptyIndex):
    """An index with a fixed answer that remembers what it was told."""

    tokens: list[int]
    asked: list[tuple[Sequence[EndpointId], float]] = field(default_factory=list)
    speculated: list[tuple[EndpointId, float]] = field(default_factory=list)
    withdrawn: list[EndpointId] = field(default_factory=list)
    predicted: list[tuple[EndpointId, DecisionId, float]] = field(default_factory=list)
    over: list[tuple[DecisionId, bool, Usage | None]] = field(default_factory=list)
    offloaded: dict[str, list[int]] = field(default_factory=dict)

    def match(self, tokens: TokenizedRequest, endpoints: Sequence[EndpointId], now: float) -> Hits:
        self.asked.append((list(endpoints), now))
        return Hits(self.tokens, self.offloaded)

    def speculate(self, hits: PrefixHits, endpoint: EndpointId, until: float) -> None:
        self.speculated.append((endpoint, until))

    def unspeculate(self, endpoint: EndpointId) -> None:
        self.withdrawn.append(endpoint)

    def predict(self, *said: Any, **_: Any) -> None:
        _hits, endpoint, decision_id, _model, _now, ttl_s = said
        self.predicted.append((endpoint, decision_id, ttl_s))

    def answer_ended(self, decision_id: DecisionId, *, served: bool, said: Usage | None) -> None:
        self.over.append((decision_id, served, said))


def producer(index: Index, **params: Any) -> PrecisePrefixCacheProducer:
    return PrecisePrefixCacheProducer(NAME, PrecisePrefixCacheParams(**params), Collaborators(index))


def decide(subject: PrecisePrefixCacheProducer, cycle: Cycle, *profiles: str) -> None:
    """Profile number i chose endpoint number i."""
    results = {name: ProfileResult(name, FLEET, [], [], [FLEET[i]]) for i, name in enumerate(profiles)}
    subject.decided(cycle, Decision(DecisionId("d"), "r", results[profiles[0]], results, cycle.request, cycle.tokens))


def test_hits_are_reported_in_blocks_of_the_configured_unit() -> None:
    """Engine hits in tokens become whole blocks; the total is the sum over prompts of their full blocks."""
    index = Index([50, 16, 0])
    cycle = make_cycle(FLEET, tokens=make_tokens(50, 30), now=7.0)
    producer(index).produce(cycle)
    match = cycle.get(prefix_match_key(NAME))
    assert match is not None
    assert (match.block_size, match.total_blocks, match.matched_blocks) == (16, 4, [3, 1, 0])
    assert (match.total_tokens, match.matched_tokens) == (80, [50, 16, 0])
    assert index.asked == [([endpoint.id for endpoint in FLEET], 7.0)]


@pytest.mark.parametrize(("config", "unit"), [({}, 16), ({"block_size": 64}, 64), ({"block_size": 64, "block_size_tokens": 32}, 32)])
def test_the_unit_has_a_deprecated_name(config: dict[str, Any], unit: int) -> None:
    """blockSize counts where blockSizeTokens is absent."""
    cycle = make_cycle(FLEET, tokens=make_tokens(128))
    producer(Index([64, 0, 0]), token_processor_config=TokenProcessorConfig(**config)).produce(cycle)
    match = cycle.get(prefix_match_key(NAME))
    assert match is not None
    assert (match.block_size, match.matched_blocks[0]) == (unit, 64 // unit)


@pytest.mark.parametrize("tokens", [None, TokenizedRequest(TokenState.ABSENT, reason="unknown_model")])
def test_without_tokens_it_says_nothing(tokens: TokenizedRequest | None) -> None:
    """Absent tokens never become a match of zero: scorers see that there is no data, and nothing is speculated."""
    index = Index([0, 0, 0])
    subject = producer(index, speculative_indexing=True)
    cycle = make_cycle(FLEET, tokens=tokens)
    subject.produce(cycle)
    decide(subject, cycle, "default")
    assert cycle.prefix_matches() == {}
    assert index.asked == index.speculated == []


@pytest.mark.parametrize(
    ("params", "profiles", "speculated"),
    [
        ({}, ("default",), []),
        ({"speculative_indexing": True}, ("default",), [("default/pod-0", 12.0)]),
        ({"speculative_indexing": True, "speculative_ttl": Duration(0.5)}, ("default",), [("default/pod-0", 10.5)]),
        ({"speculative_indexing": True, "speculative_ttl": Duration(-1.0)}, ("default",), [("default/pod-0", 12.0)]),
        ({"speculative_indexing": True}, ("decode", "prefill", "encode"), [("default/pod-0", 12.0), ("default/pod-1", 12.0)]),
    ],
)
def test_the_chosen_endpoint_counts_as_holding_the_prompt(
    params: dict[str, Any], profiles: tuple[str, ...], speculated: list[tuple[str, float]]
) -> None:
    """Only where configured, for the time to live, for the endpoints that compute the prompt."""
    index = Index([0, 0, 0])
    subject = producer(index, **params)
    cycle = make_cycle(FLEET, tokens=make_tokens(64), now=10.0)
    subject.produce(cycle)
    decide(subject, cycle, *profiles)
    assert index.speculated == speculated


@pytest.mark.parametrize(
    ("params", "profiles", "predicted"),
    [
        ({}, ["default"], (FLEET[0].id, "d", 0.0)),
        ({"speculative_indexing": True}, ["default"], (FLEET[0].id, "d", 2.0)),
        ({}, ["decode", "prefill"], (FLEET[1].id, "d", 0.0)),
    ],
    ids=["not speculated", "speculated", "prefilled elsewhere"],
)
def test_what_the_computing_endpoint_stores_is_held_against_the_decision(
    params: dict[str, Any], profiles: list[str], predicted: tuple[EndpointId, str, float]
) -> None:
    """With or without speculation; until the answer ends."""
    index = Index([0] * len(FLEET))
    subject, cycle = producer(index, **params), make_cycle(FLEET, tokens=make_tokens(64))
    subject.produce(cycle)
    decide(subject, cycle, *profiles)
    assert index.predicted == [predicted]
    results = {"p": ProfileResult("p", FLEET, [], [], [FLEET[0]])}
    subject.ended(Decision(DecisionId("d"), "r", results["p"], results, None, None), RequestEnd(DecisionId("d"), EndCause.FINISHED))
    assert index.over == [("d", True, None)]


def ended(end: RequestEnd, *, api: Api = Api.CHAT, profiles: int = 1) -> tuple[bool, Usage | None]:
    """What the index is told when a decision for the first endpoint ends like this."""
    index = Index([0, 0, 0])
    results = {name: ProfileResult(name, FLEET, [], [], [FLEET[i]]) for i, name in enumerate(("default", "prefill")[:profiles])}
    request = InferenceRequest(api, "/", "m", None, 1)
    producer(index).ended(Decision(DecisionId("d"), "r", results["default"], results, request, None), end)
    return index.over[0][1:]


def an_end(**fields: Any) -> RequestEnd:
    return RequestEnd(DecisionId("d"), **{"cause": EndCause.FINISHED, "status": 200, **fields})


@pytest.mark.parametrize(
    ("end", "served"),
    [
        (an_end(), True),
        (an_end(status=None), True),
        (an_end(served=FLEET[0].host_port), True),
        (an_end(served=FLEET[1].host_port), False),
        (an_end(status=503), False),
        (an_end(cause=EndCause.CLIENT_GONE), False),
        (an_end(cause=EndCause.AGED_OUT, status=None), False),
    ],
    ids=["200", "nobody told", "there", "elsewhere", "refused", "client gone", "aged out"],
)
def test_what_an_endpoint_answered_is_told_apart(end: RequestEnd, served: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Only then it can be asked what it stored and found."""
    assert ended(end)[0] is served


USAGE = Usage(prompt_tokens=50, completion_tokens=1, cached_tokens=32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, Usage(prompt_tokens=50, cached_tokens=32)),
        ({"api": Api.COMPLETIONS}, Usage(prompt_tokens=50, cached_tokens=32)),
        ({"api": Api.MESSAGES}, Usage(cached_tokens=32)),
        ({"api": Api.RESPONSES}, Usage(cached_tokens=32)),
        ({"profiles": 2}, None),
    ],
    ids=["chat", "completions", "Anthropic", "Responses", "prefilled elsewhere"],
)
def test_only_numbers_that_can_be_compared_are_told(options: dict[str, Any], said: Usage | None) -> None:
    """The others mean something else than what was foreseen."""
    assert ended(an_end(usage=USAGE), **options) == (True, said)


@pytest.mark.parametrize("cause", list(EndCause))
def test_an_endpoint_that_fails_a_request_is_expected_to_compute_nothing(cause: EndCause) -> None:
    """Or who tries again would be sent to a dead endpoint, for a prefix it never computed."""
    index = Index([0] * len(FLEET))
    results = {"p": ProfileResult("p", FLEET, [], [], [FLEET[1]])}
    producer(index).ended(Decision(DecisionId("d"), "r", results["p"], results, None, None), RequestEnd(DecisionId("d"), cause))
    assert index.withdrawn == ([FLEET[1].id] if cause is EndCause.UPSTREAM_FAILED else [])


@pytest.mark.parametrize(
    ("configured", "weights"),
    [
        ((), {"gpu": 1.0, "cpu": 0.8, "storage": 0.5}),
        (
            (KVCacheBackend(name="CPU_Pinned", weight=0.3), KVCacheBackend(name="pool")),
            {"gpu": 1.0, "pool": 1.0, "storage": 0.5, "cpu": 0.3},
        ),
        ((KVCacheBackend(name="cpu", weight=0.0), KVCacheBackend(name="GPU", weight=0.2)), {"gpu": 0.2, "storage": 0.5}),
    ],
)
def test_mediums_have_weights(configured: tuple[KVCacheBackend, ...], weights: dict[str, float]) -> None:
    """llm-d's unless given otherwise, whatever case a name is written in; from best to worst, and none that is worth nothing."""
    assert list(IndexerConfig(kv_cache_backend_configs=configured).weights.items()) == list(weights.items())


def test_rule_13_weighted_hits_are_exact() -> None:
    """Ten blocks in CPU memory are worth eight, not seven; parts of a block count; whole blocks are told beside."""
    index = Index([160, 320, 40])
    index.offloaded = {"cpu": [160, 160, 0], "storage": [0, 80, 0]}
    cycle = make_cycle(FLEET, tokens=make_tokens(400))
    producer(index).produce(cycle)
    match = cycle.get(prefix_match_key(NAME))

    assert match is not None
    assert match.worth == [8.0, 15.5, 2.5]
    assert (match.matched_blocks, match.matched_tokens) == ([10, 20, 2], [160, 320, 40])
