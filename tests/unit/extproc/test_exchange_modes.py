"""The ext_proc conversation in each body mode a filter may be configured for."""

import pytest

from epp.errors import PayloadTooLargeError, ProtocolError
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
    ReplyRequestHeaders,
    ReplyRequestTrailers,
    ReplyResponseBody,
    ReplyResponseHeaders,
    RequestBody,
    ResponseHeaders,
)
from epp.extproc.exchange import Exchange
from epp.extproc.gathering import BodyRoom
from tests.unit.extproc.conversations import (
    AT_THE_HEADERS,
    DUPLEX,
    HEADERS,
    RB,
    RB_END,
    ROUTE,
    RT,
    SB,
    SB_END,
    SH,
    SH_JSON,
    headers,
    picked,
    run,
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
    exchange = Exchange(1000, BodyRoom(1 << 30))
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
