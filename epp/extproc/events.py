"""The words of an ext_proc conversation: what Envoy tells (events) and what is to be done about it (actions).

Plain records built once or a few times per request, hence slots and not frozen; nobody changes one after it was made.
They know nothing of protobuf: `codec` turns messages into events and replies into messages. Names follow the direction
of the HTTP traffic: "request" flows to the model server, "response" to the client.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

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


@dataclass(slots=True)
class RequestHeaders:
    """The first message of every stream. `subset` is None where the data plane does not restrict the candidates."""

    headers: dict[str, str]
    """Names in lower case; of repeated ones the last wins."""
    end_of_stream: bool
    """Neither body nor trailers follow."""
    subset: tuple[str, ...] | None = None
    request_body_mode: BodyMode | None = None
    """What the filter is configured to; None: the data plane does not tell."""
    response_body_mode: BodyMode | None = None


@dataclass(slots=True)
class RequestBody:
    """One chunk. Chunk borders mean nothing."""

    data: bytes
    end_of_stream: bool
    subset: tuple[str, ...] | None = None
    """Metadata travels on every message; some gateways add the hint after the headers went out."""


@dataclass(slots=True)
class RequestTrailers:
    """The body ended before this message, without an end of stream of its own."""

    subset: tuple[str, ...] | None = None


@dataclass(slots=True)
class ResponseHeaders:
    """The answer begins: the model server's, or one the data plane made up itself."""

    status: int | None
    end_of_stream: bool


@dataclass(slots=True)
class ResponseBody:
    """One chunk of the answer."""

    data: bytes
    end_of_stream: bool


@dataclass(slots=True)
class ResponseTrailers:
    """The answer ends with trailers."""


Event = RequestHeaders | RequestBody | RequestTrailers | ResponseHeaders | ResponseBody | ResponseTrailers


# --- the answer to a Pick ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Route:
    """Where a request goes, and what is changed on its way."""

    destination: str
    """Comma list of "ip:port", best first."""
    decision_id: DecisionId
    body: bytes | None = None
    """None: forward the body as it came."""
    set_headers: tuple[tuple[str, str], ...] = ()
    """Request headers to set, in order."""


# --- actions: for the shell to perform, in order -------------------------------------------------------------


@dataclass(slots=True)
class Pick:
    """Ask the director; give its Route to `Exchange.resolve`, or its RequestError to `Exchange.reject`."""

    headers: Mapping[str, str]
    subset: tuple[str, ...] | None
    body: bytes | None
    """None: a request without a body."""


@dataclass(slots=True)
class ReplyRequestHeaders:
    """Let the headers go on, to the route's destination."""

    route: Route
    content_length: int
    """Bytes of the body that goes on; 0: there is none, and no Content-Length is set."""


@dataclass(slots=True)
class ReplyRequestBody:
    """Let this chunk go on. A view into the whole body, so that sending does not copy it once more."""

    data: bytes | memoryview
    end_of_stream: bool


@dataclass(slots=True)
class ReplyRequestTrailers:
    """Let the trailers go on."""


@dataclass(slots=True)
class ReplyResponseHeaders:
    """Let the answer begin."""


@dataclass(slots=True)
class ReplyResponseBody:
    """Let this chunk of the answer go on."""

    data: bytes | memoryview
    end_of_stream: bool


@dataclass(slots=True)
class ReplyResponseTrailers:
    """Let the answer end."""


@dataclass(slots=True)
class Reject:
    """End the request with an answer of ours (an immediate response), then end the stream with OK."""

    error: RequestError


Reply = (
    ReplyRequestHeaders
    | ReplyRequestBody
    | ReplyRequestTrailers
    | ReplyResponseHeaders
    | ReplyResponseBody
    | ReplyResponseTrailers
    | Reject
)
Action = Pick | Reply
