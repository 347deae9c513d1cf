"""ext_proc messages as bytes to events, and replies to bytes (envoy.service.ext_proc.v3, our copy in proto/ext_proc.proto).

Knows fields and nothing of their order in time: that is `exchange`. Called by the transports for every message, on the
event loop; pure functions. Header values are bytes on the wire and text here: what is no UTF-8 becomes U+FFFD, because
values are matched and logged, never echoed. Submessages are reached through attributes rather than built as keyword
arguments, which costs a third of the time.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from epp import names
from epp._proto import core_pb2
from epp._proto import ext_proc_pb2 as pb
from epp.errors import ProtocolError
from epp.extproc import rejections, wire
from epp.extproc.events import (
    BodyMode,
    ContinueRequestBody,
    ContinueRequestHeaders,
    ContinueResponseBody,
    Event,
    Reject,
    ReplaceResponseBody,
    Reply,
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


def decode(data: bytes) -> Event:
    """The event of one ProcessingRequest. Raises ProtocolError where it is none or of a kind we do not know."""
    return wire.decode(data) or _decode(data)


def _decode(data: bytes) -> Event:
    message = pb.ProcessingRequest()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a ProcessingRequest: {error}") from None
    if message.observability_mode:
        raise ProtocolError("the ext_proc filter's observability_mode is on: it ignores every reply, so nothing can be routed: turn it off")
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
    return RequestHeaders(headers, http.end_of_stream, _subset(message), request_mode, response_mode, _attributes(message))


def _request_body(message: pb.ProcessingRequest) -> RequestBody:
    http = message.request_body
    return RequestBody(http.body, http.end_of_stream, _subset(message))


def _request_trailers(message: pb.ProcessingRequest) -> RequestTrailers:
    return RequestTrailers(_subset(message))


def _response_headers(message: pb.ProcessingRequest) -> ResponseHeaders:
    http = message.response_headers
    found = {header.key: _header_value(header) for header in http.headers.headers if header.key in _READ_OF_RESPONSES}
    status = found.get(":status") or found.get("status", "")
    mode = _body_mode(message.protocol_config.response_body_mode) if message.HasField("protocol_config") else None
    return ResponseHeaders(
        int(status) if _STATUS.fullmatch(status) else None,
        http.end_of_stream,
        found.get("content-type", "").partition(";")[0].strip().lower(),
        mode,
        _served(message),
    )


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
_READ_OF_RESPONSES: Final = frozenset((":status", "status", "content-type"))
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


def _served(message: pb.ProcessingRequest) -> str | None:
    """The endpoint that serves, as data planes tell that choose among several themselves (spec/protocol.md 1.2)."""
    namespaces = message.metadata_context.filter_metadata
    if names.DESTINATION_NAMESPACE not in namespaces:
        return None
    fields = namespaces[names.DESTINATION_NAMESPACE].fields
    return (fields[names.SERVED_ENDPOINT].string_value or None) if names.SERVED_ENDPOINT in fields else None


def _attributes(message: pb.ProcessingRequest) -> bytes | None:
    """The filter's request_attributes, as `origin` reads them; None where it is not configured to send any."""
    for key, fields in message.attributes.items():
        return pb.ProcessingRequest.AttributesEntry(key=key, value=fields).SerializeToString()
    return None


def _strings(value: Value) -> tuple[str, ...]:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return tuple(item.string_value for item in value.list_value.values if item.string_value)
    if kind == "string_value":
        return tuple(part for item in value.string_value.split(",") if (part := item.strip()))
    return ()


def encode(reply: Reply) -> bytes:
    """One ProcessingResponse, serialized."""
    return wire.encode(reply) or _encode(reply)


def _encode(reply: Reply) -> bytes:
    message = pb.ProcessingResponse()
    _ENCODERS[type(reply)](message, reply)
    return message.SerializeToString()


def _request_headers_reply(message: pb.ProcessingResponse, reply: ReplyRequestHeaders) -> None:
    """Destination as header and as metadata with the same value (spec/protocol.md 1.2), and the id that will come back in the access log.

    Headers that stay as they are are not echoed, as llm-d does: that has no effect in Envoy and costs both sides CPU.
    """
    _fill_route(message, message.request_headers.response, reply.route, reply.content_length)


def _buffered_request_reply(message: pb.ProcessingResponse, reply: ReplyBufferedRequest) -> None:
    """The same as the reply to a body: in BUFFERED the headers still wait for it, and take its mutation (spec/protocol.md 2.4)."""
    response, body = message.request_body.response, reply.route.body
    if body is None:
        _fill_route(message, response, reply.route, 0)
    else:  # Envoy keeps the old Content-Length and refuses a body it does not fit (spec/protocol.md 2.1.2)
        response.body_mutation.body = body
        _fill_route(message, response, reply.route, len(body))


def _replaced_response_body(message: pb.ProcessingResponse, reply: ReplaceResponseBody) -> None:
    response = message.response_body.response
    response.body_mutation.body = reply.data
    if reply.whole:
        _set_header(response.header_mutation, "Content-Length", b"%d" % len(reply.data))


_ENCODERS: Final[dict[type[Reply], Callable[[pb.ProcessingResponse, Any], None]]] = {
    ReplyRequestHeaders: _request_headers_reply,
    ContinueRequestHeaders: lambda message, _: message.request_headers.SetInParent(),
    ReplyRequestBody: lambda message, reply: _fill_body(message.request_body, reply),
    ReplyBufferedRequest: _buffered_request_reply,
    ContinueRequestBody: lambda message, _: message.request_body.SetInParent(),
    ReplyRequestTrailers: lambda message, _: message.request_trailers.SetInParent(),
    ReplyResponseHeaders: lambda message, _: _set_header(
        message.response_headers.response.header_mutation, names.WENT_INTO_RESPONSE_HEADERS, b"true"
    ),
    ReplyResponseBody: lambda message, reply: _fill_body(message.response_body, reply),
    ContinueResponseBody: lambda message, _: message.response_body.SetInParent(),
    ReplaceResponseBody: _replaced_response_body,
    ReplyResponseTrailers: lambda message, _: message.response_trailers.SetInParent(),
    Reject: lambda message, reply: rejections.render(reply.error, message.immediate_response),
}


def _fill_body(message: pb.BodyResponse, reply: ReplyRequestBody | ReplyResponseBody) -> None:
    streamed = message.response.body_mutation.streamed_response
    streamed.SetInParent()  # an empty chunk that does not end the stream is still a streamed response
    data = reply.data
    streamed.body = data if isinstance(data, bytes) else bytes(data)
    streamed.end_of_stream = reply.end_of_stream


def _fill_route(message: pb.ProcessingResponse, response: pb.CommonResponse, route: Route, content_length: int) -> None:
    response.clear_route_cache = True
    mutation = response.header_mutation
    _set_header(mutation, names.DESTINATION_ENDPOINT, route.destination.encode())
    if content_length:
        _set_header(mutation, "Content-Length", b"%d" % content_length)
    for key, value in route.set_headers:
        _set_header(mutation, key, value.encode(errors="replace"))
    namespaces = message.dynamic_metadata.fields
    destination = namespaces[names.DESTINATION_NAMESPACE].struct_value.fields
    destination[names.DESTINATION_ENDPOINT].string_value = route.destination
    if route.scores is not None:
        scores = destination[names.ENDPOINT_SCORES].struct_value.fields
        for endpoint, score in route.scores.items():
            scores[endpoint].number_value = score
    namespaces[names.EPP_NAMESPACE].struct_value.fields[names.DECISION_ID].string_value = route.decision_id


def _set_header(mutation: pb.HeaderMutation, key: str, value: bytes) -> None:
    header = mutation.set_headers.add().header
    header.key = key
    header.raw_value = value
