"""The approximate producer: what endpoints are taken to hold, from what was sent to them (spec/plugins.md 8.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import (
    Api,
    Decision,
    DecisionId,
    EndpointMetrics,
    InferenceRequest,
    PrefixMatch,
    ProfileResult,
    TokenizedRequest,
    TokenState,
)
from epp.plugins.producers.approx_prefix_cache import ApproxPrefixCacheParams, ApproxPrefixCacheProducer
from epp.requests.estimate import IMAGE_TOKENS, VIDEO_TOKENS, estimated_prompts
from epp.scheduling.interfaces import prefix_match_key
from epp.scheduling.registry import Collaborators
from epp.testing.builders import make_cycle, make_endpoint

NAME = "approx-prefix-cache-producer"
FLEET = [make_endpoint(i) for i in range(3)]
TEXT = "x" * (64 * 4)
"""One block, where nothing else is known than text."""


def producer(**params: Any) -> ApproxPrefixCacheProducer:
    return ApproxPrefixCacheProducer(NAME, ApproxPrefixCacheParams(**params), Collaborators())


def completion(prompt: object, model: str = "m", salt: str | None = None) -> InferenceRequest:
    return InferenceRequest(Api.COMPLETIONS, "/v1/completions", model, {"prompt": prompt}, 100, cache_salt=salt)


def sent(
    subject: ApproxPrefixCacheProducer,
    request: InferenceRequest,
    target: int | None = None,
    tokens: TokenizedRequest | None = None,
    fleet: Sequence[Any] = FLEET,
) -> PrefixMatch | None:
    """What is known of a request; then it goes to an endpoint, if one is given."""
    cycle = make_cycle(fleet, tokens=tokens, request=request)
    subject.produce(cycle)
    if target is not None:
        result = ProfileResult("default", fleet, [], [], [fleet[target]])
        subject.decided(cycle, Decision(DecisionId("d"), "r", result, {"default": result}, request, tokens))
    return cycle.get(prefix_match_key(NAME))


def test_a_prefix_is_where_it_was_sent() -> None:
    """In blocks of 64 tokens at least, the incomplete last one included."""
    subject = producer()
    first = sent(subject, completion(TEXT * 2 + "tail"), 1)
    assert first == PrefixMatch(64, 3, [0, 0, 0], 129, [0, 0, 0])
    again = sent(subject, completion(TEXT * 2 + "another tail"))
    assert again is not None
    assert (again.matched_blocks, again.matched_tokens) == ([0, 2, 0], [0, 128, 0])


@pytest.mark.parametrize(
    "other", [completion(TEXT, model="n"), completion(TEXT, salt="s"), completion("y" + TEXT[1:])], ids=["model", "salt", "first byte"]
)
def test_what_begins_otherwise_is_another_prefix(other: InferenceRequest) -> None:
    """Model and salt begin every chain."""
    subject = producer()
    sent(subject, completion(TEXT), 0)
    found = sent(subject, other)
    assert found is not None
    assert found.matched_blocks == [0, 0, 0]


def test_exact_tokens_go_before_text() -> None:
    """They are what a prefix really is."""
    subject, tokens = producer(), TokenizedRequest(TokenState.EXACT, [list(range(200))])
    assert sent(subject, completion("a"), 2, tokens) == PrefixMatch(64, 4, [0, 0, 0], 200, [0, 0, 0])
    found = sent(subject, completion("b"), tokens=tokens)
    assert found is not None
    assert (found.matched_blocks, found.matched_tokens) == ([0, 0, 4], [0, 0, 200])


@pytest.mark.parametrize(
    ("params", "metrics", "size"),
    [
        ({}, EndpointMetrics(), 64),
        ({}, EndpointMetrics(block_size=128), 128),
        ({}, EndpointMetrics(block_size=16), 64),
        ({"auto_tune": False}, EndpointMetrics(block_size=128), 64),
        ({"auto_tune": False, "block_size_tokens": 256}, EndpointMetrics(), 256),
        ({"auto_tune": False, "block_size": 256}, EndpointMetrics(), 256),
        ({"auto_tune": False, "block_size": 256, "block_size_tokens": 512}, EndpointMetrics(), 512),
    ],
)
def test_block_size(params: dict[str, Any], metrics: EndpointMetrics, size: int) -> None:
    """The engine's where it tells, never below 64."""
    found = sent(producer(**params), completion(TEXT), fleet=[replace(FLEET[0], metrics=metrics)])
    assert found is not None
    assert found.block_size == size


@pytest.mark.parametrize(
    ("params", "metrics", "held"),
    [
        ({"lru_capacity_per_server": 3}, EndpointMetrics(), 3),
        ({"lru_capacity_per_server": 3}, EndpointMetrics(num_blocks=5), 5),
        ({"lru_capacity_per_server": 3, "auto_tune": False}, EndpointMetrics(num_blocks=5), 3),
    ],
)
def test_an_endpoint_holds_the_latest_it_has_room_for(params: dict[str, Any], metrics: EndpointMetrics, held: int) -> None:
    """The least recently sent gives way."""
    subject, fleet = producer(**params), [replace(FLEET[0], metrics=metrics)]
    for number in range(10):
        sent(subject, completion(f"{number}{TEXT[1:]}"), 0, fleet=fleet)
    found = [sent(subject, completion(f"{number}{TEXT[1:]}"), fleet=fleet) for number in range(10)]
    assert [match.matched_blocks for match in found if match is not None] == [[0]] * (10 - held) + [[1]] * held


@pytest.mark.parametrize(
    ("params", "blocks"),
    [
        ({"max_prefix_tokens_to_match": 128}, 2),
        ({"max_prefix_tokens_to_match": 0, "max_prefix_blocks_to_match": 3}, 3),
        ({"max_prefix_tokens_to_match": 0, "max_prefix_blocks_to_match": 0}, 5),
        ({}, 5),
    ],
)
def test_long_prompts_are_matched_up_to_a_limit(params: dict[str, Any], blocks: int) -> None:
    """The newer parameter wins."""
    found = sent(producer(**params), completion(TEXT * 5))
    assert found is not None
    assert found.total_blocks == blocks


def test_an_endpoint_that_left_holds_nothing_and_its_place_is_used_again() -> None:
    """Freed with the requests that follow, in slices."""
    subject = producer()
    for number in range(300):
        sent(subject, completion(f"{number:04}{TEXT[4:]}"), 0)
    subject.endpoint_removed(FLEET[0].id)
    found = sent(subject, completion(f"0007{TEXT[4:]}"))
    assert found is not None
    assert found.matched_blocks == [0, 0, 0]
    sent(subject, completion("else" + TEXT[4:]), 0)
    assert subject._bits <= 2
    assert len(subject._holders) == 1


def test_nothing_is_said_of_requests_without_a_prompt() -> None:
    """Images, forms, empty texts."""
    subject = producer()
    assert sent(subject, InferenceRequest(Api.OPAQUE, "/x", "m", None, 0), 0) is None
    assert sent(subject, completion(""), 0) is None


def test_block_size_zero_needs_the_engine() -> None:
    """Nobody else could say it."""
    with pytest.raises(ValueError, match="blockSizeTokens: must be above 0 where autoTune is off"):
        ApproxPrefixCacheParams(auto_tune=False, block_size_tokens=0)


# --- the text that stands in for tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "body", "expected"),
    [
        (Api.CHAT, {"messages": [{"role": "user", "content": "hello"}]}, [b"userhello\0\0\0"]),
        (Api.CHAT, {"tools": [1], "messages": [{"role": "u", "content": [{"type": "text", "text": "hi"}]}]}, [b"[1]uhi\0\0"]),
        (Api.CHAT, {"messages": [{"role": "u", "content": [{"image_url": "x"}]}, 7]}, [b'u{"image_url":"x"}\0\0']),
        (Api.MESSAGES, {"system": "s", "messages": [{"role": "u", "content": "h"}]}, [b"suh\0"]),
        (Api.RESPONSES, {"instructions": "i", "input": "hey"}, [b"ihey"]),
        (Api.RESPONSES, {"input": [{"role": "u", "content": [{"type": "input_text", "text": "hey"}]}, {"a": 1}]}, [b'uhey{"a":1}\0']),
        (Api.COMPLETIONS, {"prompt": ["a", "bcde", ""]}, [b"a\0\0\0", b"bcde"]),
        (Api.COMPLETIONS, {"prompt": [1, 2]}, []),
        (Api.GENERATE, {"token_ids": [1]}, []),
    ],
)
def test_what_stands_in_for_tokens(api: Api, body: Mapping[str, object], expected: list[bytes]) -> None:
    """Tools, then role and content of each message, four bytes a token."""
    assert estimated_prompts(InferenceRequest(api, "/", "m", body, 0)) == expected


@pytest.mark.parametrize(
    ("api", "part", "tokens"),
    [
        (Api.CHAT, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}, IMAGE_TOKENS),
        (Api.CHAT, {"type": "video_url", "video_url": {"url": "http://example.com/film"}}, VIDEO_TOKENS),
        (Api.MESSAGES, {"type": "image", "source": {"type": "base64", "data": "A" * 400_000}}, IMAGE_TOKENS),
        (Api.RESPONSES, {"type": "input_image", "image_url": "http://example.com/picture"}, IMAGE_TOKENS),
    ],
)
def test_media_count_as_their_placeholders(api: Api, part: dict[str, object], tokens: int) -> None:
    """Not as their bytes: one inline picture would drive a hundred prompts out of an endpoint's books. Another one is another prefix."""

    def prompt(part: dict[str, object]) -> bytes:
        messages = [{"role": "u", "content": [part, {"type": "text", "text": "what is this?"}]}]
        key = "input" if api is Api.RESPONSES else "messages"
        (prompt,) = estimated_prompts(InferenceRequest(api, "/", "m", {key: messages}, 0))
        return prompt

    assert len(prompt(part)) == 4 * tokens + 16
    assert prompt(part) == prompt(dict(part))
    other = prompt({**part, "other": 1})
    assert len(other) == len(prompt(part))
    assert other[:64] != prompt(part)[:64]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
)


@given(
    st.sampled_from(list(Api)), st.dictionaries(st.sampled_from(["messages", "tools", "prompt", "input", "system", "instructions"]), JSON)
)
def test_any_body_has_some_text(api: Api, body: dict[str, object]) -> None:
    """Nothing a client can send is an error here."""
    for prompt in estimated_prompts(InferenceRequest(api, "/", "m", body, 0)):
        assert len(prompt) % 4 == 0
