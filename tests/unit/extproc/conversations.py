"""Messages of a data plane, and whole conversations of them with an Exchange."""

from epp.domain import DecisionId
from epp.extproc.events import (
    Action,
    BodyMode,
    Event,
    Pick,
    ReplyRequestHeaders,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)
from epp.extproc.exchange import Exchange
from epp.extproc.gathering import BodyRoom

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
    exchange = Exchange(max_body, BodyRoom(1 << 30))
    actions: list[Action] = []
    for event in events:
        for action in exchange.receive(event):
            actions += [action, *exchange.resolve(route)] if isinstance(action, Pick) else [action]
    return actions


def picked(body: bytes | None) -> list[Action]:
    return [Pick(HEADERS, None, body), ReplyRequestHeaders(ROUTE, len(body or b""))]
