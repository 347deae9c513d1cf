"""The response direction: what is held, what goes on at once, and the model's name turned back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import DecisionId
from epp.extproc.answer import HELD_BYTES, Answer, ModelNameBack
from epp.extproc.events import (
    BodyMode,
    ContinueResponseBody,
    ReplaceResponseBody,
    Reply,
    ReplyResponseBody,
    ResponseBody,
    ResponseHeaders,
    Route,
)

JSON = ResponseHeaders(200, end_of_stream=False, content_type="application/json")
EVENTS = ResponseHeaders(200, end_of_stream=False, content_type="text/event-stream")
RENAMED = Route("10.0.0.1:8000", DecisionId("d"), model_names=("org/asked", "used"))


def sent(replies: list[Reply]) -> bytes:
    """The body bytes that go on."""
    return b"".join(bytes(reply.data) for reply in replies if isinstance(reply, ReplyResponseBody))


@pytest.mark.parametrize(
    ("content_type", "stream", "held"),
    [
        ("application/json", None, True),
        ("application/json", False, True),
        ("application/json", True, False),
        ("text/event-stream", False, False),
        ("application/x-ndjson", None, False),
        ("", None, False),
        ("application/grpc", None, False),
        ("application/grpc", False, True),
        ("application/grpc+proto", False, True),
    ],
)
def test_what_is_held_until_it_is_whole(content_type: str, *, stream: bool | None, held: bool) -> None:
    """One document is sent as one; whatever may be a stream goes on as it comes, so that no client waits for its first token."""
    answer = Answer(Route("10.0.0.1:8000", DecisionId("d"), stream=stream), None)
    answer.began(ResponseHeaders(200, end_of_stream=False, content_type=content_type))
    assert answer.body(ResponseBody(b"a", end_of_stream=False)) == ([] if held else [ReplyResponseBody(b"a", end_of_stream=False)])


def test_a_very_long_answer_is_not_held() -> None:
    """Memory stays bounded: beyond the limit an answer goes on as it comes."""
    answer = Answer(None, None)
    answer.began(JSON)
    half = bytes(HELD_BYTES // 2)
    assert answer.body(ResponseBody(half, end_of_stream=False)) == []
    assert answer.body(ResponseBody(half, end_of_stream=False)) == []
    assert len(sent(answer.body(ResponseBody(b"x", end_of_stream=False)))) == HELD_BYTES + 1
    assert answer.body(ResponseBody(b"y", end_of_stream=True)) == [ReplyResponseBody(b"y", end_of_stream=True)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b'{"id":1,"model":"org/asked","x":2}', b'{"id":1,"model":"used","x":2}'),
        (b'{"model": "org/asked"}', b'{"model": "used"}'),
        (
            b'data: {"model":"org/asked"}\n\ndata: {"model":"org/asked"}\n\ndata: [DONE]\n\n',
            b'data: {"model":"used"}\n\ndata: {"model":"used"}\n\ndata: [DONE]\n\n',
        ),
        (b'{"model":"other"}', b'{"model":"other"}'),
        (b'{"text":"\\"model\\":\\"org/asked\\""}', b'{"text":"\\"model\\":\\"org/asked\\""}'),
        (b"no JSON", b"no JSON"),
    ],
)
def test_the_model_name_is_turned_back(given: bytes, expected: bytes) -> None:
    """The client reads the name it used, never the one its request was rewritten to; text of the model is left alone (2.3.8)."""
    assert ModelNameBack("org/asked", "used").feed(given, end=True) == expected


@given(cuts=st.lists(st.integers(0, 80), max_size=6), noise=st.sampled_from([b"", b'"', b'"mod', b'"model":', b'"model": "org']))
def test_a_name_cut_by_chunk_borders_is_turned_back_too(cuts: list[int], noise: bytes) -> None:
    """Any chunking of an answer gives the same bytes (D13)."""
    text = noise + b'{"model":"org/asked","m":"x"} {"model": "org/asked"}' + noise
    names = ModelNameBack("org/asked", "used")
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [names.feed(text[a:b], end=False) for a, b in itertools.pairwise(borders)]
    assert b"".join(parts) + names.feed(b"", end=True) == text.replace(b'"org/asked"', b'"used"')


def test_a_renamed_stream_of_events_keeps_flowing() -> None:
    """Only what could be the beginning of the name waits for the next chunk."""
    answer = Answer(RENAMED, BodyMode.FULL_DUPLEX_STREAMED)
    answer.began(EVENTS)
    assert sent(answer.body(ResponseBody(b'data: {"model":"org', end_of_stream=False))) == b"data: {"
    assert sent(answer.body(ResponseBody(b'/asked"}\n\n', end_of_stream=False))) == b'"model":"used"}\n\n'
    assert sent(answer.body(ResponseBody(b'"model"', end_of_stream=False))) == b""
    assert sent(answer.trailers()) == b'"model"'


@pytest.mark.parametrize(("mode", "whole"), [(BodyMode.BUFFERED, True), (BodyMode.STREAMED, False)])
def test_a_renamed_answer_in_other_modes(mode: BodyMode, *, whole: bool) -> None:
    """One reply a message: replaced where the name stands, empty elsewhere."""
    answer = Answer(RENAMED, mode)
    answer.began(JSON)
    assert answer.body(ResponseBody(b'{"model":"org/asked"}', end_of_stream=False)) == [
        ReplaceResponseBody(b'{"model":"used"}', whole=whole)
    ]
    assert answer.body(ResponseBody(b"rest", end_of_stream=True)) == [ContinueResponseBody()]


class Notes:
    """An answer's listener that writes everything down."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def began(self, status: int | None, *, event_stream: bool, served: str | None = None) -> None:
        self.told.append((status, event_stream, served))

    def body(self, data: bytes) -> None:
        self.told.append(data)


def test_the_listener_hears_what_the_model_server_said() -> None:
    """Usage is read from the answer as it came, before anything is held or renamed."""
    notes = Notes()
    answer = Answer(Route("10.0.0.1:8000", DecisionId("d"), model_names=("a", "b"), listener=notes), None)
    answer.began(EVENTS)
    answer.body(ResponseBody(b'{"model":"a"}', end_of_stream=True))
    assert notes.told == [(200, True, None), b'{"model":"a"}']
