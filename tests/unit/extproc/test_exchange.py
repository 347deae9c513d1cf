"""The ext_proc conversation, sequence by sequence (spec/protocol.md 2.4)."""

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import DecisionId
from epp.errors import BadRequestError, InternalError, PayloadTooLargeError
from epp.extproc.events import (
    Action,
    Event,
    Pick,
    Reject,
    ReplyRequestBody,
    ReplyRequestHeaders,
    ReplyRequestTrailers,
    ReplyResponseBody,
    ReplyResponseHeaders,
    ReplyResponseTrailers,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    Route,
)
from epp.extproc.exchange import Exchange
from epp.extproc.gathering import BodyRoom
from tests.unit.extproc.conversations import (
    HEADERS,
    RB,
    RB_END,
    RH,
    RH_END,
    ROUTE,
    RT,
    SB,
    SB_END,
    SH,
    SH_END,
    SH_EVENTS,
    SH_JSON,
    ST,
    picked,
    run,
)

SEQUENCES: dict[str, tuple[list[Event], list[Action]]] = {
    "S1 GET": (
        [RH_END, SH, SB_END],
        [*picked(None), ReplyResponseHeaders(), ReplyResponseBody(b"", end_of_stream=True)],
    ),
    "S2 POST in one chunk": (
        [RH, RB_END, SH, SB_END],
        [
            *picked(b"de"),
            ReplyRequestBody(b"de", end_of_stream=True),
            ReplyResponseHeaders(),
            ReplyResponseBody(b"", end_of_stream=True),
        ],
    ),
    "S3 POST in several chunks": ([RH, RB, RB, RB_END], [*picked(b"abcabcde"), ReplyRequestBody(b"abcabcde", end_of_stream=True)]),
    "S5 the end of the stream in an empty chunk": (
        [RH, RB, RequestBody(b"", end_of_stream=True)],
        [*picked(b"abc"), ReplyRequestBody(b"abc", end_of_stream=True)],
    ),
    "a body of no bytes": (
        [RH, RequestBody(b"", end_of_stream=True)],
        [*picked(b""), ReplyRequestBody(b"", end_of_stream=True)],
    ),
    "S6 events go on one by one": (
        [RH_END, SH_EVENTS, SB, SB, SB_END],
        [
            *picked(None),
            ReplyResponseHeaders(),
            ReplyResponseBody(b"xyz", end_of_stream=False),
            ReplyResponseBody(b"xyz", end_of_stream=False),
            ReplyResponseBody(b"", end_of_stream=True),
        ],
    ),
    "S7 a JSON answer is sent as one": (
        [RH_END, SH_JSON, SB, SB, SB_END],
        [*picked(None), ReplyResponseHeaders(), ReplyResponseBody(b"xyzxyz", end_of_stream=True)],
    ),
    "S8 an answer in one piece, with trailers": (
        [RH_END, SH_JSON, SB, SB, ST],
        [*picked(None), ReplyResponseHeaders(), ReplyResponseBody(b"xyzxyz", end_of_stream=False), ReplyResponseTrailers()],
    ),
    "S9 a stream of messages, with trailers": (
        [RH_END, SH, SB, SB, ST],
        [*picked(None), ReplyResponseHeaders(), *[ReplyResponseBody(b"xyz", end_of_stream=False)] * 2, ReplyResponseTrailers()],
    ),
    "a JSON answer without a byte, with trailers": (
        [RH_END, SH_JSON, ST],
        [*picked(None), ReplyResponseHeaders(), ReplyResponseTrailers()],
    ),
    "the request is kept from us": ([SH, SB_END], [ReplyResponseHeaders(), ReplyResponseBody(b"", end_of_stream=True)]),
    "S15 the last chunk delivered twice": (
        [RH, RB_END, RB_END, SH, RB_END, SB_END, RB_END],
        [
            *picked(b"de"),
            ReplyRequestBody(b"de", end_of_stream=True),
            ReplyResponseHeaders(),
            ReplyResponseBody(b"", end_of_stream=True),
        ],
    ),
    "S16 request trailers end the body": (
        [RH, RB, RT],
        [*picked(b"abc"), ReplyRequestBody(b"abc", end_of_stream=False), ReplyRequestTrailers()],
    ),
    "request trailers without a body": ([RH, RT], [*picked(None), ReplyRequestTrailers()]),
    "S17 an answer without a body": ([RH_END, SH_END], [*picked(None), ReplyResponseHeaders()]),
    "Envoy answers before the body is whole": (
        [RH, RB, SH, RB_END, RT, SB_END],
        [ReplyResponseHeaders(), ReplyResponseBody(b"", end_of_stream=True)],
    ),
    "response headers are not sent to us": (
        [RH_END, SB, ST],
        [*picked(None), ReplyResponseBody(b"xyz", end_of_stream=False), ReplyResponseTrailers()],
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str) -> None:
    """Each documented order of messages gets exactly the documented replies."""
    events, actions = SEQUENCES[name]
    assert run(*events) == actions


def test_large_bodies_are_sent_back_below_64_kb() -> None:
    """S4: 200,000 bytes go back as 62000 + 62000 + 62000 + 14000, and only the last chunk ends the stream."""
    body = bytes(range(256)) * 782
    body = body[:200_000]
    replies = [a for a in run(RH, RequestBody(body, end_of_stream=True), max_body=200_000) if isinstance(a, ReplyRequestBody)]
    assert [(len(reply.data), reply.end_of_stream) for reply in replies] == [
        (62_000, False),
        (62_000, False),
        (62_000, False),
        (14_000, True),
    ]
    assert b"".join(reply.data for reply in replies) == body


@pytest.mark.parametrize(("size", "chunks"), [(0, 1), (1, 1), (61_999, 1), (62_000, 1), (62_001, 2), (124_000, 2), (124_001, 3)])
def test_chunk_borders(size: int, chunks: int) -> None:
    """A body takes as few chunks as the limit allows."""
    replies = run(RH, RequestBody(bytes(size), end_of_stream=True), max_body=size)[2:]
    assert len(replies) == chunks


def test_large_response_chunks_are_split() -> None:
    """A response chunk above the limit is split as well, and its end of stream stays last."""
    replies = run(RH_END, SH, ResponseBody(bytes(70_000), end_of_stream=True))[3:]
    assert replies == [ReplyResponseBody(bytes(62_000), end_of_stream=False), ReplyResponseBody(bytes(8_000), end_of_stream=True)]


def test_a_rewritten_body_replaces_the_one_received() -> None:
    """The route's body goes on, and Content-Length is counted from it."""
    route = Route("10.0.0.1:8000", DecisionId("d1"), body=b"other body")
    assert run(RH, RB_END, route=route)[1:] == [ReplyRequestHeaders(route, 10), ReplyRequestBody(b"other body", end_of_stream=True)]


def test_a_request_without_a_body_never_gets_a_body_reply() -> None:
    """Envoy kills the stream on a body reply it did not ask for, so a route's body is then left out."""
    route = Route("10.0.0.1:8000", DecisionId("d1"), body=b"other body")
    assert run(RH_END, route=route)[1:] == [ReplyRequestHeaders(route, 0)]


@pytest.mark.parametrize("events", [[RH, RB_END], [RH_END], [RH, RB, RT]])
def test_a_rejected_request_ends_with_one_immediate_response(events: list[Event]) -> None:
    """S10, S11: nothing is forwarded, and whatever Envoy still sends is ignored."""
    exchange = Exchange(1000, BodyRoom(1 << 30))
    actions = [action for event in events for action in exchange.receive(event)]
    assert isinstance(actions[-1], Pick)
    error = InternalError("no pods available in datastore")
    assert exchange.reject(error) == [Reject(error)]
    assert [action for event in (RB_END, RT, SH, SB_END, ST) for action in exchange.receive(event)] == []


def test_a_body_over_the_limit_is_refused_before_its_end() -> None:
    """413 comes with the first byte too many; a body of exactly the limit passes."""
    [reject] = run(RH, RequestBody(bytes(600), end_of_stream=False), RequestBody(bytes(401), end_of_stream=False), RB_END)
    assert isinstance(reject, Reject)
    assert isinstance(reject.error, PayloadTooLargeError)
    assert "1000 bytes" in reject.error.message
    assert run(RH, RequestBody(bytes(600), end_of_stream=False), RequestBody(bytes(400), end_of_stream=True))[0] == Pick(
        HEADERS, None, bytes(1000)
    )


def test_an_exchange_whose_answer_nobody_needs_is_over() -> None:
    """S14: the stream can end as soon as the request is on its way."""
    route = Route("10.0.0.1:8000", DecisionId("d1"), skip_response=True)
    exchange = Exchange(1000, BodyRoom(1 << 30))
    exchange.receive(RH)
    assert not exchange.over
    exchange.receive(RB_END)
    assert not exchange.over
    exchange.resolve(route)
    assert exchange.over


@pytest.mark.parametrize(
    ("events", "sent"),
    [([], 0), ([RH], 1), ([RH_END], 1), ([RH_END, SH], 1), ([RH_END, SH, SB], 1), ([RH_END, SH_END], 0), ([RH_END, SH, SB_END], 0)],
)
def test_a_request_under_way_can_be_ended(events: list[Event], sent: int) -> None:
    """S13: an immediate response at any time before the answer is complete, and nothing after it."""
    exchange = Exchange(1000, BodyRoom(1 << 30))
    for event in events:
        if any(isinstance(action, Pick) for action in exchange.receive(event)):
            exchange.resolve(ROUTE)
    error = InternalError("evicted")
    assert exchange.interrupt(error) == [Reject(error)] * sent
    assert exchange.interrupt(error) == []
    if sent:
        assert exchange.receive(SB) == []
        assert exchange.release() == []


def test_what_is_held_of_an_answer_can_be_let_go() -> None:
    """A stream that is ended on drain first gives back what it holds; no byte is lost."""
    exchange = Exchange(1000, BodyRoom(1 << 30))
    exchange.receive(RH_END)
    exchange.resolve(ROUTE)
    assert exchange.release() == []
    exchange.receive(SH_JSON)
    assert exchange.receive(SB) == []
    assert exchange.release() == [ReplyResponseBody(b"xyz", end_of_stream=False)]
    assert exchange.release() == []


@pytest.mark.parametrize(
    ("events", "subset"),
    [
        ([RequestHeaders(HEADERS, True, ("a:1",))], ("a:1",)),
        ([RequestHeaders(HEADERS, False, ("a:1",)), RB, RB_END], ("a:1",)),
        ([RH, RequestBody(b"", False, ("b:1",)), RB_END], ("b:1",)),
        ([RequestHeaders(HEADERS, False, ("a:1",)), RequestBody(b"", True, ())], ()),
        ([RH, RB, RequestTrailers(("c:1",))], ("c:1",)),
    ],
)
def test_the_subset_hint_may_come_with_any_request_message(events: list[Event], subset: tuple[str, ...]) -> None:
    """The last hint given before the pick counts; an empty one restricts to nothing."""
    pick = run(*events)[0]
    assert isinstance(pick, Pick)
    assert pick.subset == subset


@pytest.mark.parametrize(
    ("events", "seen", "complete"),
    [
        ([RH_END], False, False),
        ([RH_END, SH], True, False),
        ([RH_END, SH, SB], True, False),
        ([RH_END, SH, SB, SB_END], True, True),
        ([RH_END, SH_END], True, True),
        ([RH_END, SH, SB, ST], True, True),
    ],
)
def test_it_is_known_how_much_of_the_answer_came_by(events: list[Event], *, seen: bool, complete: bool) -> None:
    """At the end of a stream the director is told whether the answer was seen, and seen to its end (D14)."""
    exchange = Exchange(1000, BodyRoom(1 << 30))
    for event in events:
        if any(isinstance(action, Pick) for action in exchange.receive(event)):
            exchange.resolve(ROUTE)
    assert (exchange.response_seen, exchange.response_complete) == (seen, complete)


@pytest.mark.parametrize("answer", [lambda exchange: exchange.resolve(ROUTE), lambda exchange: exchange.reject(BadRequestError("no"))])
def test_an_answer_of_envoys_own_overtakes_the_pick(answer: Callable[[Exchange], list[Action]]) -> None:
    """When Envoy answers a request while we still pick, the pick's result has nobody to go to."""
    exchange = Exchange(1000, BodyRoom(1 << 30))
    exchange.receive(RH_END)
    assert exchange.receive(SH) == [ReplyResponseHeaders()]
    assert answer(exchange) == []
    assert exchange.receive(SB_END) == [ReplyResponseBody(b"", end_of_stream=True)]


def test_answering_a_pick_twice_is_a_bug() -> None:
    """The shell owes one answer per Pick; a second one must not send a second reply."""
    exchange = Exchange(1000, BodyRoom(1 << 30))
    exchange.receive(RH_END)
    exchange.resolve(ROUTE)
    with pytest.raises(RuntimeError):
        exchange.resolve(ROUTE)


@given(size=st.integers(0, 200_000), cuts=st.lists(st.integers(0, 200_000), max_size=8), marked=st.booleans())
def test_chunk_borders_mean_nothing(size: int, cuts: list[int], *, marked: bool) -> None:
    """Any chunking of a body, its end marked on the last chunk or on an empty one, gives the same pick and forwards the same bytes."""
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    borders = [0, *sorted(cut for cut in cuts if cut < size), size]
    chunks = [RequestBody(body[a:b], end_of_stream=False) for a, b in itertools.pairwise(borders)]
    if marked:
        chunks[-1].end_of_stream = True
    else:
        chunks.append(RequestBody(b"", end_of_stream=True))
    pick, headers, *replies = run(RH, *chunks, max_body=size)
    assert pick == Pick(HEADERS, None, body)
    assert headers == ReplyRequestHeaders(ROUTE, size)
    assert b"".join(reply.data for reply in replies if isinstance(reply, ReplyRequestBody)) == body
    assert [reply.end_of_stream for reply in replies if isinstance(reply, ReplyRequestBody)] == [False] * (len(replies) - 1) + [True]


def half_a_body(room: BodyRoom, size: int) -> tuple[Exchange, Sequence[Action]]:
    """An exchange in the middle of its body, and what became of its last chunk."""
    exchange = Exchange(100_000, room)
    exchange.receive(RequestHeaders({}, end_of_stream=False))
    return exchange, exchange.receive(RequestBody(bytes(size), end_of_stream=False))


def test_bodies_that_are_still_coming_share_a_room() -> None:
    """Slow clients with long prompts are told to come back when all together are too much; who was there before is served."""
    room = BodyRoom(170_000)
    first, _ = half_a_body(room, 90_000)
    _, [refused] = half_a_body(room, 90_000)
    assert isinstance(refused, Reject)
    assert (refused.error.http_status, room.taken) == (429, 90_000)
    assert half_a_body(room, 80_000)[1] == ()

    whole = Exchange(100_000, room)
    whole.receive(RequestHeaders({}, end_of_stream=False))
    assert isinstance(whole.receive(RequestBody(bytes(100_000), end_of_stream=True))[0], Pick)  # it does not have to be kept
    assert isinstance(first.receive(RequestBody(b"", end_of_stream=True))[0], Pick)


def test_clients_that_stop_half_way_do_not_shut_out_ordinary_prompts() -> None:
    """Whatever they hold, a body below 64 KiB finds room, in as many pieces as it likes."""
    room = BodyRoom(150_000)
    half_a_body(room, 90_000)
    half_a_body(room, 60_000)
    ordinary, nothing = half_a_body(room, 60_000)
    assert nothing == ()
    assert isinstance(ordinary.receive(RequestBody(bytes(5000), end_of_stream=True))[0], Pick)


@pytest.mark.parametrize("end", ["routed", "refused", "too large", "overtaken", "gone"])
def test_a_body_gives_its_room_back_however_it_ends(end: str) -> None:
    """Or the picker would refuse more and more."""
    room = BodyRoom(150_000)
    exchange, _ = half_a_body(room, 90_000)
    match end:
        case "routed" | "refused":
            exchange.receive(RequestBody(b"", end_of_stream=True))
            assert room.taken == 90_000  # until the pick is answered
            exchange.resolve(Route("10.0.0.1:8000", DecisionId("d"))) if end == "routed" else exchange.reject(BadRequestError("no"))
        case "too large":
            exchange.receive(RequestBody(bytes(10_001), end_of_stream=False))
        case "overtaken":
            exchange.receive(ResponseHeaders(504, end_of_stream=True))
        case _:
            exchange.abandon()
    assert room.taken == 0
