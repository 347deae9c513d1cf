"""The state table of the ext_proc conversation as a whole: every pair of state and event, and any order of events."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp.errors import BadRequestError, ProtocolError
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
    ResponseBody,
    ResponseHeaders,
)
from epp.extproc.exchange import Exchange, State
from epp.extproc.gathering import BodyRoom
from tests.unit.extproc.conversations import HEADERS, RB, RH, RH_END, ROUTE, RT, SB, SH, SH_END, ST, headers

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
    exchange = Exchange(1000, BodyRoom(1 << 30))
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
    exchange, picks = Exchange(20, BodyRoom(1 << 30)), 0
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
