"""The conversation about one request as a state table: `TRANSITIONS[state][type of event]` is the method that handles it.

The shell feeds events to `receive`, performs the actions it gets back in their order, and answers a Pick with `resolve`
or `reject`. Nothing here does I/O, waits, or knows protobuf; one Exchange belongs to one stream and is called from one
thread. A pair that is not in the table raises ProtocolError and closes the exchange for good.

When the endpoint is picked depends on the filter's request body mode (spec/protocol.md 2.1.2, D15), told by
`protocol_config` in the first message; a data plane that does not tell means FULL_DUPLEX_STREAMED.
- FULL_DUPLEX_STREAMED: on the whole body. Headers, body and trailers are answered at once, in this order (`resolve`); the
  body is sent back in chunks below 64 KB, the last one marked unless trailers follow. Envoy may deliver the last chunk
  twice (envoy#46237): after the end of a body its chunks are ignored.
- BUFFERED: on the whole body too, which comes as one message after the headers were let go; its reply routes.
- STREAMED, NONE, BUFFERED_PARTIAL: on the headers, because routing happens before the body is seen; every message after
  them gets an empty reply.
The response direction is `answer`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, auto
from types import MappingProxyType

from epp.errors import BadRequestError, ProtocolError, RequestError
from epp.extproc.answer import CHUNK_BYTES, Answer, chunks
from epp.extproc.events import (
    Action,
    BodyMode,
    ContinueRequestBody,
    ContinueRequestHeaders,
    Event,
    Pick,
    Reject,
    Reply,
    ReplyBufferedRequest,
    ReplyRequestBody,
    ReplyRequestHeaders,
    ReplyRequestTrailers,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)
from epp.extproc.gathering import BodyRoom, Gathering, too_large

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_AT_THE_HEADERS = frozenset((BodyMode.STREAMED, BodyMode.NONE, BodyMode.BUFFERED_PARTIAL))


class State(IntEnum):
    """Where the conversation is. Response events may overtake the pick: Envoy sends answers of its own through ext_proc too."""

    EXPECT_REQUEST_HEADERS = auto()
    READING_REQUEST_BODY = auto()
    EXPECT_BUFFERED_BODY = auto()
    """The headers were let go; the whole body is to come in one message."""
    PICKING = auto()
    """The shell owes us `resolve` or `reject`."""
    PICKING_BEFORE_BODY = auto()
    """The same, and the body, which we will not look at, may come at any moment."""
    PASSING_REQUEST = auto()
    """Routed; what is left of the request passes message by message."""
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
        "_answer",
        "_attributes",
        "_body",
        "_gathering",
        "_headers",
        "_max_body_bytes",
        "_owed",
        "_owes_answer",
        "_request_mode",
        "_response_mode",
        "_room",
        "_route",
        "_subset",
        "_trailers",
        "state",
    )

    def __init__(self, max_body: int, room: BodyRoom) -> None:
        """A body of more than `max_body` bytes is rejected with 413 as soon as it is one byte too long; 429 where all have no `room`."""
        self.state = State.EXPECT_REQUEST_HEADERS
        self._max_body_bytes = max_body
        self._room = room
        self._request_mode: BodyMode | None = None
        self._response_mode: BodyMode | None = None
        self._headers: Mapping[str, str] = NO_HEADERS
        self._subset: tuple[str, ...] | None = None
        self._attributes: bytes | None = None
        self._gathering: Gathering | None = None
        """Most bodies come in one message and need none."""
        self._body: bytes | None = None
        self._trailers = False
        self._owed: list[Reply] = []
        self._owes_answer = False
        self._route: Route | None = None
        self._answer: Answer | None = None

    @property
    def response_seen(self) -> bool:
        """Some part of an answer came by; stays False where the data plane does not send answers."""
        return self._answer is not None

    @property
    def response_complete(self) -> bool:
        """The answer came by to its end."""
        return self._answer is not None and self._answer.complete

    @property
    def bodies_sent(self) -> bool:
        """The data plane says that it is configured to send the bodies of answers."""
        return self._response_mode not in (None, BodyMode.NONE)

    @property
    def only_headers_follow(self) -> bool:
        """The request is on its way to its last byte, and the data plane says that it keeps the answer's body to itself."""
        return self.state is State.EXPECT_RESPONSE_HEADERS and self._response_mode is BodyMode.NONE

    @property
    def over(self) -> bool:
        """The stream can end with OK: nobody needs what is still to come (spec/protocol.md S14)."""
        return self._route is not None and self._route.skip_response and self.state is State.EXPECT_RESPONSE_HEADERS

    def receive(self, event: Event) -> Sequence[Action]:
        """What to do about an event. Raises ProtocolError, after which every event does."""
        try:
            handler = TRANSITIONS[self.state][type(event)]
        except KeyError:
            state = self.state.name
            self._close()
            raise ProtocolError(f"{type(event).__name__} is not expected in state {state}") from None
        return handler(self, event)

    def resolve(self, route: Route) -> list[Reply]:
        """The answer to a Pick: replies to all that was held so far. Empty where an answer has overtaken it."""
        if not self._settle():
            return []
        self._route = route
        received, self._body = self._body, None
        owed, self._owed = self._owed, []
        if self.state is State.PICKING_BEFORE_BODY:
            self.state = State.EXPECT_RESPONSE_HEADERS if self._trailers else State.PASSING_REQUEST
            return [ReplyRequestHeaders(route, 0), *owed]
        if self._request_mode is BodyMode.BUFFERED and received is not None:
            self.state = State.PASSING_REQUEST
            return [ReplyBufferedRequest(route)]
        self.state = State.EXPECT_RESPONSE_HEADERS
        if received is None:  # Envoy takes a body reply only where it sent a body
            return [ReplyRequestHeaders(route, 0), ReplyRequestTrailers()] if self._trailers else [ReplyRequestHeaders(route, 0)]
        body = received if route.body is None else route.body
        replies: list[Reply] = [ReplyRequestHeaders(route, len(body))]
        if len(body) <= CHUNK_BYTES:
            replies.append(ReplyRequestBody(body, not self._trailers))
        else:
            replies += [ReplyRequestBody(data, last and not self._trailers) for data, last in chunks(body)]
        if self._trailers:
            replies.append(ReplyRequestTrailers())
        return replies

    def reject(self, error: RequestError) -> list[Reply]:
        """The other answer to a Pick: the request ends here. Empty where an answer has overtaken it."""
        return [self._reject(error)] if self._settle() else []

    def interrupt(self, error: RequestError) -> list[Reply]:
        """End a request that is under way with an answer of ours (spec/protocol.md S13); empty where it is too late.

        Once the answer has begun Envoy can only reset it.
        """
        if self.state in (State.RESPONSE_COMPLETE, State.REJECTED, State.CLOSED, State.EXPECT_REQUEST_HEADERS):
            return []
        return [self._reject(error)]

    def abandon(self) -> None:
        """Give back what the body takes of the room; whatever ends the stream, this has to be called."""
        if self._gathering is not None:
            self._gathering.drop()
            self._gathering = None

    def release(self) -> Sequence[Reply]:
        """What is held of an answer, so that the stream can end with OK before the answer does. Empty where there is nothing."""
        return [] if self._answer is None or self.state is State.REJECTED else self._answer.release()

    # --- the request ----------------------------------------------------------------------------------------

    def _on_request_headers(self, event: RequestHeaders) -> Sequence[Action]:
        self._take_modes(event.request_body_mode, event.response_body_mode)
        self._headers, self._subset, self._attributes = event.headers, event.subset, event.attributes
        if event.end_of_stream:
            return self._pick(None)
        if self._request_mode in _AT_THE_HEADERS:
            return self._pick(None, body_follows=True)
        if self._request_mode is BodyMode.BUFFERED:
            self.state = State.EXPECT_BUFFERED_BODY
            return [ContinueRequestHeaders()]
        self.state = State.READING_REQUEST_BODY
        return ()

    def _on_request_body(self, event: RequestBody) -> Sequence[Action]:
        if event.subset is not None:
            self._subset = event.subset
        gathering = self._gathering
        if gathering is None:
            if event.end_of_stream:
                if len(event.data) > self._max_body_bytes:
                    return [self._reject(too_large(self._max_body_bytes))]
                return self._pick(event.data)
            gathering = self._gathering = Gathering(self._max_body_bytes, self._room)
        error = gathering.add(event.data)
        if error is not None:
            return [self._reject(error)]
        return self._pick(gathering.body()) if event.end_of_stream else ()

    def _on_buffered_body(self, event: RequestBody) -> Sequence[Action]:
        """All of it, whether or not trailers follow."""
        return self._on_request_body(RequestBody(event.data, end_of_stream=True, subset=event.subset))

    def _on_request_trailers(self, event: RequestTrailers) -> Sequence[Action]:
        """Trailers end the body (spec/protocol.md S16); without any byte before them there was none."""
        if event.subset is not None:
            self._subset = event.subset
        self._trailers = True
        return self._pick(None if self._gathering is None else self._gathering.body() or None)

    def _on_trailers_without_body(self, event: RequestTrailers) -> Sequence[Action]:
        """The headers went on without a destination, and a reply to trailers cannot give one."""
        return [self._reject(BadRequestError("a request of headers and trailers cannot be routed in the body mode BUFFERED"))]

    def _owe_body(self, event: RequestBody) -> Sequence[Action]:
        self._owed += self._pass_late(ContinueRequestBody())
        return []

    def _owe_trailers(self, event: RequestTrailers) -> Sequence[Action]:
        self._owed += self._pass_late(ReplyRequestTrailers())
        self._trailers = True
        return []

    def _pass_late(self, reply: Reply) -> Sequence[Reply]:
        """Nothing of a request follows its trailers; what does all the same gets no reply, which Envoy could not place."""
        return () if self._trailers else (reply,)

    def _pass_body(self, event: RequestBody) -> Sequence[Action]:
        return [ContinueRequestBody()]

    def _pass_trailers(self, event: RequestTrailers) -> Sequence[Action]:
        self._trailers = True
        self.state = State.EXPECT_RESPONSE_HEADERS
        return [ReplyRequestTrailers()]

    def _on_late_body(self, event: RequestBody) -> Sequence[Action]:
        return self._pass_late(ContinueRequestBody()) if self._one_reply_a_message() else ()

    def _on_late_trailers(self, event: RequestTrailers) -> Sequence[Action]:
        replies = self._pass_late(ReplyRequestTrailers()) if self._one_reply_a_message() else ()
        self._trailers = True
        return replies

    # --- the response ---------------------------------------------------------------------------------------

    def _on_first_response_headers(self, event: ResponseHeaders) -> Sequence[Action]:
        """The filter is configured to keep the request from us: all we can do is let its answer pass."""
        self._take_modes(None, event.response_body_mode)
        return self._on_response_headers(event)

    def _on_response_headers(self, event: ResponseHeaders) -> Sequence[Action]:
        self._drop_request()
        return self._answered(self._the_answer().began(event))

    def _on_response_body(self, event: ResponseBody) -> Sequence[Action]:
        return self._answered(self._the_answer().body(event))

    def _on_response_trailers(self, event: ResponseTrailers) -> Sequence[Action]:
        return self._answered(self._the_answer().trailers())

    def _ignore(self, event: Event) -> Sequence[Action]:
        return []

    # --- steps ----------------------------------------------------------------------------------------------

    def _take_modes(self, request: BodyMode | None, response: BodyMode | None) -> None:
        """Refuse a filter configuration under which no request could ever be answered, with the remedy."""
        if BodyMode.GRPC in (request, response):
            self._close()
            name = "request_body_mode" if request is BodyMode.GRPC else "response_body_mode"
            raise ProtocolError(f"the ext_proc filter's {name} is GRPC, which epp does not speak: set it to FULL_DUPLEX_STREAMED")
        self._request_mode, self._response_mode = request, response

    def _pick(self, body: bytes | None, *, body_follows: bool = False) -> Sequence[Action]:
        pick = Pick(self._headers, self._subset, body, body_follows, self._attributes)
        self._headers, self._subset, self._attributes = NO_HEADERS, None, None
        self.state = State.PICKING_BEFORE_BODY if body_follows else State.PICKING
        self._owes_answer = True
        self._body = body
        return [pick]

    def _settle(self) -> bool:
        """Take the answer to a Pick; False: it comes too late."""
        if not self._owes_answer:
            raise RuntimeError("resolve() or reject() without a Pick to answer")
        self._owes_answer = False
        self.abandon()
        return self.state in (State.PICKING, State.PICKING_BEFORE_BODY)

    def _one_reply_a_message(self) -> bool:
        return self._request_mode not in (None, BodyMode.FULL_DUPLEX_STREAMED)

    def _the_answer(self) -> Answer:
        if self._answer is None:
            self._answer = Answer(self._route, self._response_mode)
        return self._answer

    def _answered(self, replies: Sequence[Reply]) -> Sequence[Action]:
        self.state = State.RESPONSE_COMPLETE if self.response_complete else State.READING_RESPONSE_BODY
        return replies

    def _reject(self, error: RequestError) -> Reject:
        self.state = State.REJECTED
        self._drop_request()
        return Reject(error)

    def _close(self) -> None:
        self.state = State.CLOSED
        self._drop_request()

    def _drop_request(self) -> None:
        """What was gathered is not needed any more; the stream may stay open for as long as the answer takes."""
        self._headers, self._subset, self._attributes, self._body = NO_HEADERS, None, None, None
        self._owed = []
        self.abandon()


_Handlers = dict[type[Event], Callable[..., Sequence[Action]]]

_RESPONSE: _Handlers = {
    ResponseHeaders: Exchange._on_response_headers,
    # A filter with response_header_mode SKIP begins with one of these.
    ResponseBody: Exchange._on_response_body,
    ResponseTrailers: Exchange._on_response_trailers,
}

TRANSITIONS: dict[State, _Handlers] = {
    State.EXPECT_REQUEST_HEADERS: {
        RequestHeaders: Exchange._on_request_headers,
        ResponseHeaders: Exchange._on_first_response_headers,
    },
    State.READING_REQUEST_BODY: {
        RequestBody: Exchange._on_request_body,
        RequestTrailers: Exchange._on_request_trailers,
        ResponseHeaders: Exchange._on_response_headers,
    },
    State.EXPECT_BUFFERED_BODY: {
        RequestBody: Exchange._on_buffered_body,
        RequestTrailers: Exchange._on_trailers_without_body,
        ResponseHeaders: Exchange._on_response_headers,
    },
    State.PICKING: {
        RequestBody: Exchange._ignore,
        ResponseHeaders: Exchange._on_response_headers,
    },
    State.PICKING_BEFORE_BODY: {
        RequestBody: Exchange._owe_body,
        RequestTrailers: Exchange._owe_trailers,
        ResponseHeaders: Exchange._on_response_headers,
    },
    State.PASSING_REQUEST: {
        RequestBody: Exchange._pass_body,
        RequestTrailers: Exchange._pass_trailers,
        **_RESPONSE,
    },
    State.EXPECT_RESPONSE_HEADERS: {
        RequestBody: Exchange._ignore,
        **_RESPONSE,
    },
    State.READING_RESPONSE_BODY: {
        RequestBody: Exchange._on_late_body,
        RequestTrailers: Exchange._on_late_trailers,
        ResponseBody: Exchange._on_response_body,
        ResponseTrailers: Exchange._on_response_trailers,
    },
    State.RESPONSE_COMPLETE: {
        RequestBody: Exchange._on_late_body,
        RequestTrailers: Exchange._on_late_trailers,
        ResponseBody: Exchange._ignore,
    },
    State.REJECTED: dict.fromkeys(
        (RequestHeaders, RequestBody, RequestTrailers, ResponseHeaders, ResponseBody, ResponseTrailers), Exchange._ignore
    ),
    State.CLOSED: {},
}
