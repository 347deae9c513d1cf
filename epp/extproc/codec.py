"""ext_proc messages as bytes to events, and replies to bytes (envoy.service.ext_proc.v3, our copy in proto/ext_proc.proto).

Knows fields and nothing of their order in time: that is `exchange`. Called by the transports for every message, on the
event loop; pure functions. Header values are bytes on the wire and text here: what is no UTF-8 becomes U+FFFD, because
values are matched and logged, never echoed. Submessages are reached through attributes rather than built as keyword
arguments, which costs a third of the time.
"""

import re
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from epp import names
from epp._proto import core_pb2
from epp._proto import ext_proc_pb2 as pb
from epp.errors import ProtocolError
from epp.extproc import rejections
from epp.extproc.events import (
    BodyMode,
    Event,
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
)


def decode(data: bytes) -> Event:
    """The event of one ProcessingRequest. Raises ProtocolError where it is none or of a kind we do not know."""
    message = pb.ProcessingRequest()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a ProcessingRequest: {error}") from None
    decoder = _DECODERS.get(message.WhichOneof("request"))
    if decoder is None:
        raise ProtocolError("a ProcessingRequest of a kind unknown to this version")
    return decoder(message)


def _request_headers(message: pb.ProcessingRequest) -> RequestHeaders:
    http = message.request_headers
    request_mode = response_mode = None
    if message.HasField("protocol_config"):
        request_mode = _body_mode(message.protocol_config.request_body_mode)
        response_mode = _body_mode(message.protocol_config.response_body_mode)
    headers = {header.key.lower(): _header_value(header) for header in http.headers.headers}
    return RequestHeaders(headers, http.end_of_stream, _subset(message), request_mode, response_mode)


def _request_body(message: pb.ProcessingRequest) -> RequestBody:
    http = message.request_body
    return RequestBody(http.body, http.end_of_stream, _subset(message))


def _request_trailers(message: pb.ProcessingRequest) -> RequestTrailers:
    return RequestTrailers(_subset(message))


def _response_headers(message: pb.ProcessingRequest) -> ResponseHeaders:
    http = message.response_headers
    found = {header.key: _header_value(header) for header in http.headers.headers if header.key in _STATUS_KEYS}
    status = found.get(":status") or found.get("status", "")
    return ResponseHeaders(int(status) if _STATUS.fullmatch(status) else None, http.end_of_stream)


def _response_body(message: pb.ProcessingRequest) -> ResponseBody:
    http = message.response_body
    return ResponseBody(http.body, http.end_of_stream)


_DECODERS: Final[dict[str | None, Callable[[pb.ProcessingRequest], Event]]] = {
    "request_headers": _request_headers,
    "request_body": _request_body,
    "request_trailers": _request_trailers,
    "response_headers": _response_headers,
    "response_body": _response_body,
    "response_trailers": lambda _: ResponseTrailers(),
}

# Envoy says ":status"; llm-d's own fixtures say "status" (spec/protocol.md D4).
_STATUS_KEYS: Final = frozenset((":status", "status"))
_STATUS: Final = re.compile(r"[1-9][0-9]{2}")


def _header_value(header: core_pb2.HeaderValue) -> str:
    """raw_value, or value where a runtime guard of Envoy's makes it use that (spec/protocol.md 2.1.3)."""
    return header.raw_value.decode("utf-8", "replace") or header.value


def _body_mode(number: int) -> BodyMode:
    try:
        return BodyMode(number)
    except ValueError:
        raise ProtocolError(f"the ext_proc filter's body mode {number} is unknown to this version: set FULL_DUPLEX_STREAMED") from None


def _subset(message: pb.ProcessingRequest) -> tuple[str, ...] | None:
    """The subset hint (spec/protocol.md 1.2, D6): a list of strings, or one comma-separated string; None: no restriction.

    Anything else that stands there restricts to nothing: a restriction we cannot read must not be taken for none.
    """
    if not message.HasField("metadata_context"):
        return None
    namespaces = message.metadata_context.filter_metadata
    # Looking a missing key up with [] would add it.
    if names.SUBSET_NAMESPACE not in namespaces:
        return None
    fields = namespaces[names.SUBSET_NAMESPACE].fields
    if names.SUBSET_KEY not in fields:
        return None
    return _strings(fields[names.SUBSET_KEY])


def _strings(value: Value) -> tuple[str, ...]:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return tuple(item.string_value for item in value.list_value.values if item.string_value)
    if kind == "string_value":
        return tuple(part for item in value.string_value.split(",") if (part := item.strip()))
    return ()


def encode(reply: Reply) -> bytes:
    """One ProcessingResponse, serialized."""
    message = pb.ProcessingResponse()
    match reply:
        case ReplyResponseBody(data, end_of_stream):
            _fill_body(message.response_body, data, end_of_stream=end_of_stream)
        case ReplyRequestBody(data, end_of_stream):
            _fill_body(message.request_body, data, end_of_stream=end_of_stream)
        case ReplyRequestHeaders():
            _fill_request_headers(message, reply)
        case ReplyResponseHeaders():
            _set_header(message.response_headers.response.header_mutation, names.WENT_INTO_RESPONSE_HEADERS, b"true")
        case ReplyRequestTrailers():
            message.request_trailers.SetInParent()
        case ReplyResponseTrailers():
            message.response_trailers.SetInParent()
        case Reject(error):
            rejections.render(error, message.immediate_response)
    return message.SerializeToString()


def _fill_body(reply: pb.BodyResponse, data: bytes | memoryview, *, end_of_stream: bool) -> None:
    streamed = reply.response.body_mutation.streamed_response
    streamed.SetInParent()  # an empty chunk that does not end the stream is still a streamed response
    streamed.body = data if isinstance(data, bytes) else bytes(data)
    streamed.end_of_stream = end_of_stream


def _fill_request_headers(message: pb.ProcessingResponse, reply: ReplyRequestHeaders) -> None:
    """Destination as header and as metadata with the same value (spec/protocol.md 1.2), and the id that will come back in the access log.

    Headers that stay as they are are not echoed, as llm-d does: that has no effect in Envoy and costs both sides CPU.
    """
    route = reply.route
    response = message.request_headers.response
    response.clear_route_cache = True
    mutation = response.header_mutation
    _set_header(mutation, names.DESTINATION_ENDPOINT, route.destination.encode())
    if reply.content_length:
        _set_header(mutation, "Content-Length", b"%d" % reply.content_length)
    for key, value in route.set_headers:
        _set_header(mutation, key, value.encode(errors="replace"))
    namespaces = message.dynamic_metadata.fields
    namespaces[names.DESTINATION_NAMESPACE].struct_value.fields[names.DESTINATION_ENDPOINT].string_value = route.destination
    namespaces[names.EPP_NAMESPACE].struct_value.fields[names.DECISION_ID].string_value = route.decision_id


def _set_header(mutation: pb.HeaderMutation, key: str, value: bytes) -> None:
    header = mutation.set_headers.add().header
    header.key = key
    header.raw_value = value
