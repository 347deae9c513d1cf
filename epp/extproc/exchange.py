"""The conversation about one request as a state table: `TRANSITIONS[state][type of event]` is the method that handles it.

The shell feeds events to `receive`, performs the actions it gets back in their order, and answers a Pick with `resolve`
or `reject`. Nothing here does I/O, waits, or knows protobuf; one Exchange belongs to one stream and is called from one
thread. A pair that is not in the table raises ProtocolError and closes the exchange for good.

What Envoy demands in FULL_DUPLEX_STREAMED (spec/protocol.md 0.1, 2.1.2) and where it is kept here:
- per direction headers are answered before body before trailers: `resolve` replies to all three at once, in order;
- the whole body is sent back, in chunks below 64 KB, the last one marked unless trailers follow: `_chunks`;
- Envoy may deliver the last body chunk twice (envoy#46237): after the end of a body its chunks are ignored.
"""

from collections.abc import Callable, Iterator
from enum import Enum, auto
from io import BytesIO

from epp.errors import PayloadTooLargeError, ProtocolError, RequestError
from epp.extproc.events import (
    Action,
    BodyMode,
    Event,
    Pick,
    Reject,
    Reply,
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

# Envoy recommends chunks of at most 64 KB; with the message around it 62,000 bytes of body stay below (spec/protocol.md 0.1).
CHUNK_BYTES = 62_000


class State(Enum):
    """Where the conversation is. Response events may overtake the pick: Envoy sends answers of its own through ext_proc too."""

    EXPECT_REQUEST_HEADERS = auto()
    READING_REQUEST_BODY = auto()
    PICKING = auto()
    """The shell owes us `resolve` or `reject`."""
    EXPECT_RESPONSE_HEADERS = auto()
    READING_RESPONSE_BODY = auto()
    RESPONSE_COMPLETE = auto()
    REJECTED = auto()
    """We sent an immediate response; whatever Envoy had under way is ignored."""
    CLOSED = auto()
    """After a protocol error."""


class Exchange:
    """One ext_proc conversation."""

    __slots__ = (
        "_body",
        "_headers",
        "_max_body_bytes",
        "_owes_answer",
        "_received",
        "_subset",
        "_trailers",
        "response_complete",
        "response_seen",
        "state",
    )

    def __init__(self, max_body: int) -> None:
        """A body of more than `max_body` bytes is rejected with 413 as soon as it is one byte too long."""
        self.state = State.EXPECT_REQUEST_HEADERS
        self.response_seen = False
        """Some part of an answer came by; stays False where the data plane does not send answers."""
        self.response_complete = False
        """The answer came by to its end."""
        self._max_body_bytes = max_body
        self._headers: dict[str, str] = {}
        self._subset: tuple[str, ...] | None = None
        # Not a list of chunks: a client that sends two bytes a chunk would make it weigh thirty times its body.
        self._received = BytesIO()
        self._body: bytes | None = None
        self._trailers = False
        self._owes_answer = False

    def receive(self, event: Event) -> list[Action]:
        """What to do about an event. Raises ProtocolError, after which every event does."""
        try:
            handler = TRANSITIONS[self.state][type(event)]
        except KeyError:
            state = self.state.name
            self._close()
            raise ProtocolError(f"{type(event).__name__} is not expected in state {state}") from None
        return handler(self, event)

    def resolve(self, route: Route) -> list[Reply]:
        """The answer to a Pick: replies to headers, body and trailers held so far. Empty where an answer has overtaken it."""
        self._settle()
        if self.state is not State.PICKING:
            return []
        self.state = State.EXPECT_RESPONSE_HEADERS
        received, self._body = self._body, None
        replies: list[Reply]
        if received is None:  # Envoy takes a body reply only where it sent a body
            replies = [ReplyRequestHeaders(route, 0)]
        else:
            body = received if route.body is None else route.body
            replies = [ReplyRequestHeaders(route, len(body))]
            replies += [ReplyRequestBody(data, last and not self._trailers) for data, last in _chunks(body)]
        if self._trailers:
            replies.append(ReplyRequestTrailers())
        return replies

    def reject(self, error: RequestError) -> list[Reply]:
        """The other answer to a Pick: the request ends here. Empty where an answer has overtaken it."""
        self._settle()
        return [self._reject(error)] if self.state is State.PICKING else []

    # --- the request ----------------------------------------------------------------------------------------

    def _on_request_headers(self, event: RequestHeaders) -> list[Action]:
        self._check_modes(event)
        self._headers, self._subset = event.headers, event.subset
        if event.end_of_stream:
            return self._pick(None)
        self.state = State.READING_REQUEST_BODY
        return []

    def _on_request_body(self, event: RequestBody) -> list[Action]:
        if event.subset is not None:
            self._subset = event.subset
        if self._received.tell() + len(event.data) > self._max_body_bytes:
            return [self._reject(PayloadTooLargeError(f"request body exceeds the limit of {self._max_body_bytes} bytes"))]
        self._received.write(event.data)
        return self._pick(self._received.getvalue()) if event.end_of_stream else []

    def _on_request_trailers(self, event: RequestTrailers) -> list[Action]:
        """Trailers end the body (spec/protocol.md S16); without any byte before them there was none."""
        if event.subset is not None:
            self._subset = event.subset
        self._trailers = True
        return self._pick(self._received.getvalue() or None)

    # --- the response ---------------------------------------------------------------------------------------

    def _on_response_headers(self, event: ResponseHeaders) -> list[Action]:
        self._drop_request()
        self._begin_response(complete=event.end_of_stream)
        return [ReplyResponseHeaders()]

    def _on_response_body(self, event: ResponseBody) -> list[Action]:
        """Every chunk goes on at once, as it came. llm-d holds a JSON answer back until it is whole, to read its usage; that
        costs memory and the client time, and our end of an answer comes from the access log."""
        self._begin_response(complete=event.end_of_stream)
        return [ReplyResponseBody(data, last and event.end_of_stream) for data, last in _chunks(event.data)]

    def _on_response_trailers(self, event: ResponseTrailers) -> list[Action]:
        self._begin_response(complete=True)
        return [ReplyResponseTrailers()]

    def _ignore(self, event: Event) -> list[Action]:
        return []

    # --- steps ----------------------------------------------------------------------------------------------

    def _check_modes(self, event: RequestHeaders) -> None:
        """Refuse a filter configuration under which no request could ever be answered, with the remedy."""
        request, response = event.request_body_mode, event.response_body_mode
        if request not in {None, BodyMode.FULL_DUPLEX_STREAMED} and not event.end_of_stream:
            self._close()
            raise ProtocolError(
                f"the ext_proc filter's request_body_mode is {request.name}: set it to FULL_DUPLEX_STREAMED, with request_trailer_mode SEND"
            )
        if response not in {None, BodyMode.NONE, BodyMode.FULL_DUPLEX_STREAMED}:
            self._close()
            raise ProtocolError(
                f"the ext_proc filter's response_body_mode is {response.name}: set it to NONE, or to FULL_DUPLEX_STREAMED "
                "with response_trailer_mode SEND"
            )

    def _pick(self, body: bytes | None) -> list[Action]:
        pick = Pick(self._headers, self._subset, body)
        self._drop_request()
        self.state = State.PICKING
        self._owes_answer = True
        self._body = body
        return [pick]

    def _settle(self) -> None:
        if not self._owes_answer:
            raise RuntimeError("resolve() or reject() without a Pick to answer")
        self._owes_answer = False

    def _reject(self, error: RequestError) -> Reject:
        self.state = State.REJECTED
        self._drop_request()
        return Reject(error)

    def _begin_response(self, *, complete: bool) -> None:
        self.response_seen = True
        self.response_complete = complete
        self.state = State.RESPONSE_COMPLETE if complete else State.READING_RESPONSE_BODY

    def _close(self) -> None:
        self.state = State.CLOSED
        self._drop_request()

    def _drop_request(self) -> None:
        """What was gathered is not needed any more; the stream may stay open for as long as the answer takes."""
        self._headers, self._subset, self._body = {}, None, None
        self._received = BytesIO()


def _chunks(body: bytes) -> Iterator[tuple[bytes | memoryview, bool]]:
    """The body in pieces of at most CHUNK_BYTES, each with "is the last"; one empty piece for an empty body."""
    size = len(body)
    if size <= CHUNK_BYTES:
        yield body, True
        return
    view = memoryview(body)
    for start in range(0, size, CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES], start + CHUNK_BYTES >= size


_IGNORE_LATE_REQUEST: dict[type[Event], Callable[..., list[Action]]] = {
    RequestBody: Exchange._ignore,
    RequestTrailers: Exchange._ignore,
}

TRANSITIONS: dict[State, dict[type[Event], Callable[..., list[Action]]]] = {
    State.EXPECT_REQUEST_HEADERS: {RequestHeaders: Exchange._on_request_headers},
    State.READING_REQUEST_BODY: {
        RequestBody: Exchange._on_request_body,
        RequestTrailers: Exchange._on_request_trailers,
        ResponseHeaders: Exchange._on_response_headers,
    },
    State.PICKING: {
        RequestBody: Exchange._ignore,
        ResponseHeaders: Exchange._on_response_headers,
    },
    State.EXPECT_RESPONSE_HEADERS: {
        RequestBody: Exchange._ignore,
        ResponseHeaders: Exchange._on_response_headers,
        # A filter with response_header_mode SKIP begins with one of these.
        ResponseBody: Exchange._on_response_body,
        ResponseTrailers: Exchange._on_response_trailers,
    },
    State.READING_RESPONSE_BODY: {
        **_IGNORE_LATE_REQUEST,
        ResponseBody: Exchange._on_response_body,
        ResponseTrailers: Exchange._on_response_trailers,
    },
    State.RESPONSE_COMPLETE: {
        **_IGNORE_LATE_REQUEST,
        ResponseBody: Exchange._ignore,
    },
    State.REJECTED: dict.fromkeys(
        (RequestHeaders, RequestBody, RequestTrailers, ResponseHeaders, ResponseBody, ResponseTrailers), Exchange._ignore
    ),
    State.CLOSED: {},
}
