"""Usage as engines state it, however their answers are cut into chunks."""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp.domain import Usage
from epp.requests import usage
from epp.requests.usage import UsageReader


def read(chunks: Iterable[bytes], *, event_stream: bool) -> Usage | None:
    reader = UsageReader(event_stream=event_stream)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()


def document(value: object) -> Usage | None:
    return read([json.dumps(value).encode()], event_stream=False)


def sse(*events: object, separator: str = "\n\n", prefix: str = "data: ") -> bytes:
    return "".join(f"{prefix}{event if isinstance(event, str) else json.dumps(event)}{separator}" for event in events).encode()


def stream(*events: object) -> Usage | None:
    return read([sse(*events)], event_stream=True)


# --- documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}, Usage(7, 2, 9)),
        (
            {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}},
            Usage(7, 2, 9, 0),
        ),
        (
            {"usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9, "input_tokens_details": {"cached_tokens": 4}}},
            Usage(7, 2, 9, 4),
        ),
        ({"usage": {"prompt_tokens": "7", "completion_tokens": "2", "total_tokens": "9"}}, Usage(7, 2, 9)),
        ({"usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}}, Usage(7, 0, 7)),
        ({"usage": {"prompt_tokens": 7, "prompt_tokens_details": None}}, Usage(7)),
        ({"type": "message", "usage": {"input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 2}}, Usage(7, 2, 9, 5)),
        (
            {"text": "a", "meta_info": {"prompt_tokens": 7, "completion_tokens": 2, "cached_tokens": 5, "finish_reason": {}}},
            Usage(7, 2, 9, 5),
        ),
        ({"text": "a", "meta_info": {"prompt_tokens": 7, "completion_tokens": 2, "finish_reason": None}}, None),
        ({"choices": [{"message": {"content": 'no "usage": {"prompt_tokens": 7} at all'}}]}, None),
        ({"choices": [{"usage": {"prompt_tokens": 7}}]}, None),
        ({"usage": None}, None),
        ({"usage": {}}, None),
        ({"usage": [7, 2]}, None),
        ({"usage": {"prompt_tokens": True, "completion_tokens": -1, "total_tokens": 10**15, "cached_tokens": "many"}}, None),
        ({"response": "text", "message": 5, "usage": {"prompt_tokens": 7}}, Usage(7)),
        ([{"usage": {"prompt_tokens": 7}}], None),
        ("text", None),
    ],
)
def test_documents(answer: object, expected: Usage | None) -> None:
    """OpenAI's spellings, Anthropic's and SGLang's; what is no count says nothing."""
    assert document(answer) == expected


@pytest.mark.parametrize("body", [b"", b"{", b'{"usage":', b'{"usage":{"prompt_tokens":7}', b"\xff\xfe", b'{"usage"' + b"[" * 100_000])
def test_what_cannot_be_read_says_nothing(body: bytes) -> None:
    """An answer is the client's business: nothing in it is an error here."""
    assert read([body], event_stream=False) is None
    assert read([b"data: " + body + b"\n\n"], event_stream=True) is None


def test_a_document_beyond_the_limit_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and what is read does not depend on how it is cut."""
    body = json.dumps({"data": "x" * 100, "usage": {"prompt_tokens": 7}}).encode()
    for limit, expected in ((len(body), Usage(7)), (len(body) - 1, None)):
        monkeypatch.setattr(usage, "DOCUMENT_BYTES", limit)
        assert read([body], event_stream=False) == expected
        assert read([body[:-1], body[-1:]], event_stream=False) == expected


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([{"choices": []}, {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}, "[DONE]"], Usage(7, 2, 9)),
        ([{"usage": {"prompt_tokens": 7, "completion_tokens": n, "total_tokens": 7 + n}} for n in range(4)], Usage(7, 3, 10)),
        ([{"usage": {"prompt_tokens": 7}}, {"usage": None}, "[DONE]"], Usage(7)),
        (
            [
                {"type": "response.created", "response": {"usage": None}},
                {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}}},
            ],
            Usage(7, 2, 9),
        ),
        (
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 1}}},
                {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 20}},
            ],
            Usage(7, 20, 27, 5),
        ),
        (
            [
                {"meta_info": {"prompt_tokens": 7, "completion_tokens": 1, "cached_tokens": 0, "finish_reason": None}},
                {"meta_info": {"prompt_tokens": 7, "completion_tokens": 2, "cached_tokens": 4, "finish_reason": {"type": "stop"}}},
            ],
            Usage(7, 2, 9, 4),
        ),
        (["[DONE]"], None),
    ],
    ids=["openai", "in every event", "null after", "responses", "anthropic", "sglang", "none"],
)
def test_streams(events: Sequence[Any], expected: Usage | None) -> None:
    """The last word counts, number by number."""
    assert stream(*events) == expected


@pytest.mark.parametrize(
    ("prefix", "separator"), [("data: ", "\n\n"), ("data:", "\n\n"), ("data: ", "\r\n\r\n"), ("event: x\ndata: ", "\n\n")]
)
def test_spellings_of_the_event_format(prefix: str, separator: str) -> None:
    """Carriage returns, event names and the blank after the colon are free."""
    assert read([sse({"usage": {"prompt_tokens": 7}}, prefix=prefix, separator=separator)], event_stream=True) == Usage(7)


def test_a_last_line_without_an_end_is_read() -> None:
    """A stream may stop there."""
    assert read([b'data: {"usage":{"prompt_tokens":7}}'], event_stream=True) == Usage(7)


def test_a_bad_line_costs_only_itself() -> None:
    """And lines that are no data none."""
    lines = b'data: {"usage":{"prompt_tokens":7}}\ndata: {"usage":\nid: {"usage":{"prompt_tokens":8}}\n: "usage"\n\n'
    assert read([lines], event_stream=True) == Usage(7)


def test_a_line_beyond_the_limit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is read again, however both are cut."""
    long = b'data: {"usage":{"prompt_tokens":8}}'
    short = b'data: {"usage":{"prompt_tokens":7}}'
    monkeypatch.setattr(usage, "LINE_BYTES", len(long))
    for padding, expected in ((b"", Usage(8)), (b" ", Usage(7))):
        whole = short + b"\n" + long + padding + b"\n\n"
        for cut in range(len(whole)):
            assert read([whole[:cut], whole[cut:]], event_stream=True) == expected


# --- any of it, cut anywhere ---------------------------------------------------------------------------------------

COUNTS = st.none() | st.integers(-1, 10**6) | st.sampled_from(["5", "x", True, 1.5, [], 10**20])
FIELDS = st.dictionaries(
    st.sampled_from(
        ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens", "finish_reason"]
    ),
    COUNTS,
    max_size=4,
)
EVENTS: st.SearchStrategy[object] = st.one_of(
    st.fixed_dictionaries({"usage": FIELDS | st.none()}),
    st.fixed_dictionaries({"meta_info": FIELDS}),
    st.fixed_dictionaries({"response": st.fixed_dictionaries({"usage": FIELDS})}),
    st.fixed_dictionaries({"message": st.fixed_dictionaries({"usage": FIELDS}) | st.text(max_size=3)}),
    st.fixed_dictionaries({"content": st.text(max_size=8)}),
    st.sampled_from(["[DONE]", '{"usage":', '"usage"', "", "\n", "\r"]),
)
CUTS = st.lists(st.integers(0, 400), max_size=8)


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(body), *(place for place in cuts if place < len(body))})
    return [body[begin:end] for begin, end in pairwise(places)]


@given(st.lists(EVENTS, max_size=6), CUTS, st.booleans(), st.sampled_from(["\n", "\n\n", "\r\n"]))
@example(
    events=[{"meta_info": {"prompt_tokens": 1, "finish_reason": 5}}, {"usage": {"prompt_tokens": 2}}], cuts=[60], kind=True, separator="\n"
)
def test_cuts_change_nothing(events: list[object], cuts: list[int], kind: bool, separator: str) -> None:  # noqa: FBT001  # generated
    """The same bytes in any chunks are the same usage, and never an error."""
    body = sse(*events, separator=separator) if kind else json.dumps(events[0] if events else None).encode()

    whole = read([body], event_stream=kind)

    assert read(cut(body, cuts), event_stream=kind) == whole
    assert read((body[i : i + 1] for i in range(len(body))), event_stream=kind) == whole


@given(st.lists(st.binary(max_size=40)), st.booleans())
def test_any_bytes(chunks: list[bytes], kind: bool) -> None:  # noqa: FBT001  # generated
    """Whatever a model server sends is no error."""
    read(chunks, event_stream=kind)
