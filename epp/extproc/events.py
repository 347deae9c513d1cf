"""The words of an ext_proc conversation: what Envoy tells (events) and what is to be done about it (actions).

Plain records built once or a few times per request, hence slots and not frozen; nobody changes one after it was made. Those that
every request needs have an `__init__` of their own: the one that dataclasses make is slow to call from C (setup.py).
They know nothing of protobuf: `codec` turns messages into events and replies into messages. Names follow the direction
of the HTTP traffic: "request" flows to the model server, "response" to the client.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from epp.domain import DecisionId
from epp.errors import RequestError


class BodyMode(IntEnum):
    """How the data plane sends bodies (envoy ...ext_proc.v3.ProcessingMode.BodySendMode)."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


# --- events: from the data plane -----------------------------------------------------------------------------


@dataclass(slots=True, init=False)
class RequestHeaders:
    """The first message of every stream. `subset` is None where the data plane does not restrict the candidates."""

    headers: dict[str, str]
    """Names in lower case; of repeated ones the last wins."""
    end_of_stream: bool
    """Neither body nor trailers follow."""
    subset: tuple[str, ...] | None
    request_body_mode: BodyMode | None
    """What the filter is configured to; None: the data plane does not tell."""
    response_body_mode: BodyMode | None
    attributes: bytes | None
    """Names the request as only the data plane can (`origin.from_attributes`); seldom needed, hence unread.

    None: the filter is not configured to send them (request_attributes)."""

    def __init__(
        self,
        headers: dict[str, str],
        end_of_stream: bool,
        subset: tuple[str, ...] | None = None,
        request_body_mode: BodyMode | None = None,
        response_body_mode: BodyMode | None = None,
        attributes: bytes | None = None,
    ) -> None:
        self.headers = headers
        self.end_of_stream = end_of_stream
        self.subset = subset
        self.request_body_mode = request_body_mode
        self.response_body_mode = response_body_mode
        self.attributes = attributes


@dataclass(slots=True, init=False)
class RequestBody:
    """One chunk. Chunk borders mean nothing."""

    data: bytes
    end_of_stream: bool
    subset: tuple[str, ...] | None
    """Metadata travels on every message; some gateways add the hint after the headers went out."""

    def __init__(
        self,
        data: bytes,
        end_of_stream: bool,
        subset: tuple[str, ...] | None = None,
    ) -> None:
        self.data = data
        self.end_of_stream = end_of_stream
        self.subset = subset


@dataclass(slots=True)
class RequestTrailers:
    """The body ended before this message, without an end of stream of its own."""

    subset: tuple[str, ...] | None = None


@dataclass(slots=True)
class ResponseHeaders:
    """The answer begins: the model server's, or one the data plane made up itself."""

    status: int | None
    end_of_stream: bool
    content_type: str = ""
    """In lower case and without parameters."""
    response_body_mode: BodyMode | None = None
    """As in RequestHeaders, where this is the first message of a stream: the request went past the filter."""
    served: str | None = None
    """"ip:port" of the endpoint that serves, where the data plane tells."""


@dataclass(slots=True, init=False)
class ResponseBody:
    """One chunk of the answer."""

    data: bytes
    end_of_stream: bool

    def __init__(
        self,
        data: bytes,
        end_of_stream: bool,
    ) -> None:
        self.data = data
        self.end_of_stream = end_of_stream


@dataclass(slots=True)
class ResponseTrailers:
    """The answer ends with trailers."""


Event = RequestHeaders | RequestBody | RequestTrailers | ResponseHeaders | ResponseBody | ResponseTrailers


# --- the answer to a Pick ------------------------------------------------------------------------------------


class AnswerListener(Protocol):
    """Is told what comes by of an answer, where the data plane sends answers through ext_proc at all.

    Called on the event loop by the exchange, in order; it must not raise and costs nothing where no answer comes by.
    """

    def began(self, status: int | None, *, event_stream: bool, served: str | None = None) -> None:
        """The response headers; `event_stream`: it is sent as server-sent events; `served`: by this "ip:port"."""

    def body(self, data: bytes) -> None:
        """One chunk as the data plane sent it. Chunk borders mean nothing."""


@dataclass(slots=True, init=False)
class Route:
    """Where a request goes, and what is changed on its way."""

    destination: str
    """Comma list of "ip:port", best first."""
    decision_id: DecisionId
    body: bytes | None
    """None: forward the body as it came."""
    set_headers: tuple[tuple[str, str], ...]
    """Request headers to set, in order."""
    scores: Mapping[str, float] | None
    """ "ip:port" of every scored candidate to its total, where it is to be told (--emit-endpoint-scores)."""
    model_names: tuple[str, str] | None
    """(the name the model server was asked for, the name the client used): turned back in the answer. None: the same."""
    listener: AnswerListener | None
    stream: bool | None
    """Whether the client asked for a stream of events; None: the request does not tell."""
    skip_response: bool
    """Nothing in the answer is of interest: the exchange is over once the request is on its way."""

    def __init__(
        self,
        destination: str,
        decision_id: DecisionId,
        body: bytes | None = None,
        set_headers: tuple[tuple[str, str], ...] = (),
        scores: Mapping[str, float] | None = None,
        model_names: tuple[str, str] | None = None,
        listener: AnswerListener | None = None,
        stream: bool | None = None,
        skip_response: bool = False,
    ) -> None:
        self.destination = destination
        self.decision_id = decision_id
        self.body = body
        self.set_headers = set_headers
        self.scores = scores
        self.model_names = model_names
        self.listener = listener
        self.stream = stream
        self.skip_response = skip_response


# --- actions: for the shell to perform, in order -------------------------------------------------------------


@dataclass(slots=True, init=False)
class Pick:
    """Ask the director; give its Route to `Exchange.resolve`, or its RequestError to `Exchange.reject`."""

    headers: Mapping[str, str]
    subset: tuple[str, ...] | None
    body: bytes | None
    """None: a request without a body, or one that is routed before its body is seen."""
    body_follows: bool
    """The latter."""
    attributes: bytes | None

    def __init__(
        self,
        headers: Mapping[str, str],
        subset: tuple[str, ...] | None,
        body: bytes | None,
        body_follows: bool = False,
        attributes: bytes | None = None,
    ) -> None:
        self.headers = headers
        self.subset = subset
        self.body = body
        self.body_follows = body_follows
        self.attributes = attributes


@dataclass(slots=True, init=False)
class ReplyRequestHeaders:
    """Let the headers go on, to the route's destination."""

    route: Route
    content_length: int
    """Bytes of the body that goes on; 0: there is none or it is not known, and no Content-Length is set."""

    def __init__(
        self,
        route: Route,
        content_length: int,
    ) -> None:
        self.route = route
        self.content_length = content_length


@dataclass(slots=True)
class ContinueRequestHeaders:
    """Let the headers wait for their body, which the data plane buffers: ReplyBufferedRequest routes them."""


@dataclass(slots=True, init=False)
class ReplyRequestBody:
    """Let this chunk go on (FULL_DUPLEX_STREAMED). A view into the whole body, so that sending does not copy it once more."""

    data: bytes | memoryview
    end_of_stream: bool

    def __init__(
        self,
        data: bytes | memoryview,
        end_of_stream: bool,
    ) -> None:
        self.data = data
        self.end_of_stream = end_of_stream


@dataclass(slots=True)
class ReplyBufferedRequest:
    """Let a request that the data plane buffered go on, to the route's destination (BUFFERED); its body as the route says."""

    route: Route


@dataclass(slots=True)
class ContinueRequestBody:
    """Let this chunk go on as it is (every mode but FULL_DUPLEX_STREAMED)."""


@dataclass(slots=True)
class ReplyRequestTrailers:
    """Let the trailers go on."""


@dataclass(slots=True)
class ReplyResponseHeaders:
    """Let the answer begin."""


@dataclass(slots=True, init=False)
class ReplyResponseBody:
    """Let this chunk of the answer go on (FULL_DUPLEX_STREAMED)."""

    data: bytes | memoryview
    end_of_stream: bool

    def __init__(
        self,
        data: bytes | memoryview,
        end_of_stream: bool,
    ) -> None:
        self.data = data
        self.end_of_stream = end_of_stream


@dataclass(slots=True)
class ContinueResponseBody:
    """Let this chunk of the answer go on as it is (every mode but FULL_DUPLEX_STREAMED)."""


@dataclass(slots=True)
class ReplaceResponseBody:
    """Let other bytes go on in place of this chunk (every mode but FULL_DUPLEX_STREAMED)."""

    data: bytes
    whole: bool
    """They are the whole answer, and its Content-Length changes with them."""


@dataclass(slots=True)
class ReplyResponseTrailers:
    """Let the answer end."""


@dataclass(slots=True)
class Reject:
    """End the request with an answer of ours (an immediate response), then end the stream with OK."""

    error: RequestError


Reply = (
    ReplyRequestHeaders
    | ContinueRequestHeaders
    | ReplyRequestBody
    | ReplyBufferedRequest
    | ContinueRequestBody
    | ReplyRequestTrailers
    | ReplyResponseHeaders
    | ReplyResponseBody
    | ContinueResponseBody
    | ReplaceResponseBody
    | ReplyResponseTrailers
    | Reject
)
Action = Pick | Reply
