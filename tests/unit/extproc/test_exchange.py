"""The state table of the ext_proc conversation, sequence by sequence (spec/protocol.md 2.4) and as a whole."""

import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp.domain import DecisionId
from epp.errors import BadRequestError, InternalError, PayloadTooLargeError, ProtocolError
from epp.extproc.events import (
    Action,
    BodyMode,
    ContinueRequestBody,
    ContinueRequestHeaders,
    ContinueResponseBody,
    Event,
    Pick,
    Reject,
    ReplyBufferedRequest,
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
    ResponseTrailers,
    Route,
)
from epp.extproc.exchange import Exchange, State

ROUTE = Route("10.0.0.1:8000", DecisionId("d1"))
HEADERS = {":path": "/v1/completions"}
RH = RequestHeaders(HEADERS, end_of_stream=False)
RH_END = RequestHeaders(HEADERS, end_of_stream=True)
RB = RequestBody(b"abc", end_of_stream=False)
RB_END = RequestBody(b"de", end_of_stream=True)
RT = RequestTrailers()
SH = ResponseHeaders(200, end_of_stream=False)
SH_END = ResponseHeaders(200, end_of_stream=True)
SB = ResponseBody(b"xyz", end_of_stream=False)
SB_END = ResponseBody(b"", end_of_stream=True)
ST = ResponseTrailers()
SH_JSON = ResponseHeaders(200, end_of_stream=False, content_type="application/json")
SH_EVENTS = ResponseHeaders(200, end_of_stream=False, content_type="text/event-stream")
DUPLEX = BodyMode.FULL_DUPLEX_STREAMED
AT_THE_HEADERS = (BodyMode.STREAMED, BodyMode.NONE, BodyMode.BUFFERED_PARTIAL)


def headers(request: BodyMode, response: BodyMode | None = None, *, end_of_stream: bool = False) -> RequestHeaders:
    """The first message of a stream whose filter is configured like this."""
    return RequestHeaders(HEADERS, end_of_stream, request_body_mode=request, response_body_mode=response)


def run(*events: Event, max_body: int = 1000, route: Route = ROUTE) -> list[Action]:
    """All actions of a conversation whose picks are answered at once with `route`."""
    exchange = Exchange(max_body)
    actions: list[Action] = []
    for event in events:
        for action in exchange.receive(event):
            actions += [action, *exchange.resolve(route)] if isinstance(action, Pick) else [action]
    return actions


def picked(body: bytes | None) -> list[Action]:
    return [Pick(HEADERS, None, body), ReplyRequestHeaders(ROUTE, len(body or b""))]


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
    exchange = Exchange(1000)
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


# What a filter in one of the other request body modes sends and gets.
MODES: dict[str, tuple[list[Event], list[Action]]] = {
    "BUFFERED": (
        [headers(BodyMode.BUFFERED), RB_END, SH],
        [ContinueRequestHeaders(), Pick(HEADERS, None, b"de"), ReplyBufferedRequest(ROUTE), ReplyResponseHeaders()],
    ),
    "BUFFERED, with trailers": (
        [headers(BodyMode.BUFFERED), RB, RT, SH],
        [
            ContinueRequestHeaders(),
            Pick(HEADERS, None, b"abc"),
            ReplyBufferedRequest(ROUTE),
            ReplyRequestTrailers(),
            ReplyResponseHeaders(),
        ],
    ),
    "BUFFERED, over Envoy's own limit: Envoy answers": (
        [headers(BodyMode.BUFFERED), SH, SB_END],
        [ContinueRequestHeaders(), ReplyResponseHeaders(), ReplyResponseBody(b"", end_of_stream=True)],
    ),
    "the whole request goes on after the answer began": (
        [headers(BodyMode.STREAMED), SH, RB, RB_END, SB_END],
        [
            Pick(HEADERS, None, None, body_follows=True),
            ReplyRequestHeaders(ROUTE, 0),
            ReplyResponseHeaders(),
            ContinueRequestBody(),
            ContinueRequestBody(),
            ReplyResponseBody(b"", end_of_stream=True),
        ],
    ),
    **{
        f"{mode.name}, with trailers": (
            [headers(mode), RB, RB, RT, SH],
            [
                Pick(HEADERS, None, None, body_follows=True),
                ReplyRequestHeaders(ROUTE, 0),
                ContinueRequestBody(),
                ContinueRequestBody(),
                ReplyRequestTrailers(),
                ReplyResponseHeaders(),
            ],
        )
        for mode in AT_THE_HEADERS
    },
    **{
        f"{mode.name}, a GET": ([headers(mode, end_of_stream=True), SH], [*picked(None), ReplyResponseHeaders()])
        for mode in BodyMode
        if mode is not BodyMode.GRPC
    },
}


@pytest.mark.parametrize("name", MODES)
def test_request_body_modes(name: str) -> None:
    """BUFFERED picks on the body, the other modes at the headers; every message gets the one reply its mode demands (D15)."""
    events, actions = MODES[name]
    assert run(*events) == actions


def test_messages_that_overtake_a_pick_at_the_headers_are_answered_after_it() -> None:
    """A filter that does not wait for the header reply still gets its replies in order."""
    exchange = Exchange(1000)
    for event in (headers(BodyMode.STREAMED), RB, RT):
        exchange.receive(event)
    assert exchange.resolve(ROUTE) == [ReplyRequestHeaders(ROUTE, 0), ContinueRequestBody(), ReplyRequestTrailers()]


def test_a_buffered_request_without_a_body_but_with_trailers_is_refused() -> None:
    """Its headers went on without a destination: an answer of ours is better than Envoy's 503 for no reason."""
    [_, reject] = run(headers(BodyMode.BUFFERED), RT)
    assert isinstance(reject, Reject)
    assert reject.error.http_status == 400


def test_a_buffered_body_over_the_limit_is_refused() -> None:
    """413 in BUFFERED too."""
    [_, reject] = run(headers(BodyMode.BUFFERED), RequestBody(bytes(1001), end_of_stream=True))
    assert isinstance(reject, Reject)
    assert isinstance(reject.error, PayloadTooLargeError)


@pytest.mark.parametrize("mode", [BodyMode.STREAMED, BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL])
def test_response_body_modes(mode: BodyMode) -> None:
    """Each message of an answer gets one empty reply where the filter does not stream in full duplex."""
    replies = run(headers(DUPLEX, mode, end_of_stream=True), SH_JSON, SB, SB_END)[2:]
    assert replies == [ReplyResponseHeaders(), ContinueResponseBody(), ContinueResponseBody()]


@pytest.mark.parametrize("first", [headers(BodyMode.GRPC), headers(DUPLEX, BodyMode.GRPC), ResponseHeaders(200, False, "", BodyMode.GRPC)])
def test_the_body_mode_we_do_not_speak_is_named_with_the_remedy(first: Event) -> None:
    """A filter configured for it gets an error at once instead of a request that hangs."""
    with pytest.raises(ProtocolError, match=r"_body_mode is GRPC, which epp does not speak: set it to FULL_DUPLEX_STREAMED"):
        run(first)


def test_an_exchange_whose_answer_nobody_needs_is_over() -> None:
    """S14: the stream can end as soon as the request is on its way."""
    route = Route("10.0.0.1:8000", DecisionId("d1"), skip_response=True)
    exchange = Exchange(1000)
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
    exchange = Exchange(1000)
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
    exchange = Exchange(1000)
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
    exchange = Exchange(1000)
    for event in events:
        if any(isinstance(action, Pick) for action in exchange.receive(event)):
            exchange.resolve(ROUTE)
    assert (exchange.response_seen, exchange.response_complete) == (seen, complete)


@pytest.mark.parametrize("answer", [lambda exchange: exchange.resolve(ROUTE), lambda exchange: exchange.reject(BadRequestError("no"))])
def test_an_answer_of_envoys_own_overtakes_the_pick(answer: Callable[[Exchange], list[Action]]) -> None:
    """When Envoy answers a request while we still pick, the pick's result has nobody to go to."""
    exchange = Exchange(1000)
    exchange.receive(RH_END)
    assert exchange.receive(SH) == [ReplyResponseHeaders()]
    assert answer(exchange) == []
    assert exchange.receive(SB_END) == [ReplyResponseBody(b"", end_of_stream=True)]


def test_answering_a_pick_twice_is_a_bug() -> None:
    """The shell owes one answer per Pick; a second one must not send a second reply."""
    exchange = Exchange(1000)
    exchange.receive(RH_END)
    exchange.resolve(ROUTE)
    with pytest.raises(RuntimeError):
        exchange.resolve(ROUTE)


# Written down a second time, so that a row of the table cannot be lost without notice.
LEGAL: dict[State, tuple[Event, ...]] = {
    State.EXPECT_REQUEST_HEADERS: (RH, SH),
    State.READING_REQUEST_BODY: (RB, RT, SH),
    State.EXPECT_BUFFERED_BODY: (RB, RT, SH),
    State.PICKING: (RB, SH),
    State.PICKING_BEFORE_BODY: (RB, RT, SH),
    State.PASSING_REQUEST: (RB, RT, SH, SB, ST),
    State.EXPECT_RESPONSE_HEADERS: (RB, SH, SB, ST),
    State.READING_RESPONSE_BODY: (RB, RT, SB, ST),
    State.RESPONSE_COMPLETE: (RB, RT, SB),
    State.REJECTED: (RH, RB, RT, SH, SB, ST),
    State.CLOSED: (),
}
WAYS: dict[State, tuple[Event, ...]] = {
    State.EXPECT_REQUEST_HEADERS: (),
    State.READING_REQUEST_BODY: (RH,),
    State.EXPECT_BUFFERED_BODY: (headers(BodyMode.BUFFERED),),
    State.PICKING: (RH_END,),
    State.PICKING_BEFORE_BODY: (headers(BodyMode.NONE),),
    State.PASSING_REQUEST: (headers(BodyMode.STREAMED),),
    State.EXPECT_RESPONSE_HEADERS: (RH_END,),
    State.READING_RESPONSE_BODY: (RH_END, SH),
    State.RESPONSE_COMPLETE: (RH_END, SH_END),
    State.REJECTED: (RH_END,),
    State.CLOSED: (RB,),
}


def in_state(state: State) -> Exchange:
    exchange = Exchange(1000)
    for event in WAYS[state]:
        try:
            picks = exchange.receive(event)
        except ProtocolError:
            break
        if picks and state is State.REJECTED:
            exchange.reject(BadRequestError("no"))
        elif any(isinstance(action, Pick) for action in picks) and state not in (State.PICKING, State.PICKING_BEFORE_BODY):
            exchange.resolve(ROUTE)
    assert exchange.state is state
    return exchange


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(State, (RH, RB, RT, SH, SB, ST))), ids=lambda x: getattr(x, "name", type(x).__name__)
)
def test_every_pair_of_state_and_event(state: State, event: Event) -> None:
    """A pair is handled, or raises ProtocolError naming both and closes the conversation for good."""
    exchange = in_state(state)
    if event in LEGAL[state]:
        exchange.receive(event)
        assert exchange.state is not State.CLOSED
        return
    with pytest.raises(ProtocolError, match=rf"^{type(event).__name__} is not expected in state {state.name}$"):
        exchange.receive(event)
    with pytest.raises(ProtocolError):
        exchange.receive(RH)


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


bodies = st.binary(max_size=8)
modes = st.none() | st.sampled_from(BodyMode)
events = st.one_of(
    st.builds(RequestHeaders, st.just(HEADERS), st.booleans(), request_body_mode=modes, response_body_mode=modes),
    st.builds(RequestBody, bodies, st.booleans()),
    st.just(RT),
    st.builds(ResponseHeaders, st.just(200), st.booleans(), st.sampled_from(["application/json", "text/event-stream", ""])),
    st.builds(ResponseBody, bodies, st.booleans()),
    st.just(ST),
)
PHASES: dict[type[Action], tuple[str, int]] = {
    ReplyRequestHeaders: ("request", 0),
    ContinueRequestHeaders: ("request", 0),
    ReplyRequestBody: ("request", 1),
    ReplyBufferedRequest: ("request", 1),
    ContinueRequestBody: ("request", 1),
    ReplyRequestTrailers: ("request", 2),
    ReplyResponseHeaders: ("response", 0),
    ReplyResponseBody: ("response", 1),
    ContinueResponseBody: ("response", 1),
    ReplyResponseTrailers: ("response", 2),
}


def check_order(replies: Iterable[Action]) -> None:
    """Per direction headers before body before trailers, one end of a stream at most; nothing after an immediate response."""
    phase, ended, rejected = {"request": -1, "response": -1}, set(), False
    for reply in replies:
        assert not rejected
        if isinstance(reply, Reject):
            rejected = True
            continue
        direction, step = PHASES[type(reply)]
        assert phase[direction] <= step
        assert step == 1 or phase[direction] < step
        assert direction not in ended
        phase[direction] = step
        if isinstance(reply, ReplyRequestBody | ReplyResponseBody) and reply.end_of_stream:
            ended.add(direction)


@given(st.lists(events, max_size=12), st.sampled_from(["resolve", "reject", "late"]))
@example([RequestHeaders({}, end_of_stream=False, request_body_mode=BodyMode.NONE), RT, RequestBody(b"x", end_of_stream=False)], "resolve")
@example([RequestHeaders({}, end_of_stream=False, request_body_mode=BodyMode.NONE), RT, RT], "late")
def test_any_order_of_events_ends_well(told: list[Event], answer: str) -> None:
    """Whatever a peer sends, we pick once at most, keep Envoy's order of replies, and raise nothing but ProtocolError."""
    exchange, picks = Exchange(20), 0
    sent: list[Action] = []
    late: list[Pick] = []
    for event in told:
        try:
            actions = exchange.receive(event)
        except ProtocolError:
            break
        for action in actions:
            if not isinstance(action, Pick):
                sent.append(action)
                continue
            picks += 1
            if answer == "reject":
                sent += exchange.reject(BadRequestError("no"))
            elif answer == "resolve":
                sent += exchange.resolve(ROUTE)
            else:
                late.append(action)
    for _ in late:
        sent += exchange.resolve(ROUTE)
    assert picks <= 1
    check_order(sent)
