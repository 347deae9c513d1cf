"""The messages of every request, read and written by hand: protobuf's wire format for the few shapes that come thousands of times a second.

Beside the protobuf library, not instead of it: `codec` asks here first. What is not exactly one of the shapes below
(`decode` returns None, `encode` returns None) goes through the library, which also says what is wrong with garbage. Tests
hold both to the same answers. Field numbers are those of proto/ext_proc.proto; a tag is (number << 3 | type), and type 2
is a length and so many bytes. Pure functions, on the event loop; the caches are bounded and hold header values only.
"""

from functools import lru_cache
from typing import Final

from epp import names
from epp.extproc.events import (
    BodyMode,
    ContinueRequestBody,
    ContinueRequestHeaders,
    ContinueResponseBody,
    Event,
    Reply,
    ReplyRequestBody,
    ReplyRequestHeaders,
    ReplyRequestTrailers,
    ReplyResponseBody,
    ReplyResponseHeaders,
    ReplyResponseTrailers,
    RequestBody,
    RequestHeaders,
    ResponseBody,
    Route,
)

_REQUEST_HEADERS, _REQUEST_BODY, _RESPONSE_BODY = 0x12, 0x22, 0x2A
_METADATA, _ATTRIBUTES, _MODES = 0x42, 0x4A, 0x5A

# A length of five bytes at most, as protobuf's own: a longer one would be added up for minutes.
_LENGTH_BITS: Final = 28

# Envoy's own headers repeat with every request; longer values would make the cache large, and seldom repeat.
_CACHED_HEADER_BYTES: Final = 256
_CACHED_HEADERS: Final = 1024


def decode(data: bytes) -> Event | None:
    """The event of a ProcessingRequest with headers or a body of a request, or a body of a response; None: ask the library."""
    try:
        kind = data[0]
        at, stop = extent(data, 1)
        if kind == _RESPONSE_BODY:
            return ResponseBody(*_body(data, at, stop)) if _is_complete(data, stop) else None
        attributes: bytes | None = None
        modes: _Modes = _NO_MODES
        rest = stop
        while rest < len(data):
            tag = data[rest]
            begin, rest = extent(data, rest + 1)
            if tag == _ATTRIBUTES and attributes is None:
                attributes = data[begin:rest]
            elif tag == _MODES and modes == _NO_MODES:
                modes = _body_modes(data[begin:rest])
            elif tag != _METADATA or rest > begin:  # metadata may hold a subset hint
                return None
        if rest != len(data):
            return None
        if kind == _REQUEST_BODY:
            return RequestBody(*_body(data, at, stop))
        return _headers(data, at, stop, modes, attributes) if kind == _REQUEST_HEADERS else None
    except (IndexError, ValueError):  # cut off; another shape, such as a mode we do not know or a name that is no UTF-8
        return None


def extent(data: bytes, at: int) -> tuple[int, int]:
    """Where the bytes of a field begin and end whose length stands at `at`. Raises IndexError and ValueError where there is none."""
    size = data[at]
    at += 1
    if size >= 0x80:
        size, shift = size & 0x7F, 7
        while (byte := data[at]) >= 0x80:
            size |= (byte & 0x7F) << shift
            shift += 7
            at += 1
            if shift > _LENGTH_BITS:
                raise ValueError
        size |= byte << shift
        at += 1
    return at, at + size


def _is_complete(data: bytes, at: int) -> bool:
    """Whether what follows the body of a response is its metadata, which says nothing to us, and the end."""
    while at < len(data):
        if data[at] != _METADATA:
            return False
        _, at = extent(data, at + 1)
    return at == len(data)


def _body(data: bytes, at: int, stop: int) -> tuple[bytes, bool]:
    """HttpBody: body = 1, end_of_stream = 2. Raises ValueError for another shape."""
    content = b""
    if at < stop and data[at] == 0x0A:
        begin, at = extent(data, at + 1)
        content = data[begin:at]
    if at == stop:
        return content, False
    if data[at:stop] != b"\x10\x01":
        raise ValueError
    return content, True


def _headers(data: bytes, at: int, stop: int, modes: tuple[BodyMode | None, BodyMode | None], attributes: bytes | None) -> RequestHeaders:
    """HttpHeaders: headers = 1, end_of_stream = 3. Raises ValueError for another shape."""
    if data[at] != 0x0A:
        raise ValueError
    at, end = extent(data, at + 1)
    if end != stop and data[end:stop] != b"\x18\x01":
        raise ValueError
    headers: dict[str, str] = {}
    while at < end:
        if data[at] != 0x0A:
            raise ValueError
        size = data[at + 1]
        if size < 0x80:
            at += 2
            begin, at = at, at + size
        else:
            begin, at = extent(data, at + 1)
        entry = data[begin:at]
        pair = _header(entry) if len(entry) <= _CACHED_HEADER_BYTES else _header.__wrapped__(entry)
        headers[pair[0]] = pair[1]
    if at != end:
        raise ValueError
    return RequestHeaders(headers, end != stop, None, modes[0], modes[1], attributes)


@lru_cache(_CACHED_HEADERS)
def _header(entry: bytes) -> tuple[str, str]:
    """HeaderValue: key = 1, raw_value = 3. Raises ValueError for another shape."""
    begin, at = extent(entry, 1)
    if entry[0] != 0x0A or at > len(entry):
        raise ValueError
    key = entry[begin:at].decode().lower()
    if at == len(entry):
        return key, ""
    begin, stop = extent(entry, at + 1)
    if entry[at] != 0x1A or stop != len(entry):
        raise ValueError
    return key, entry[begin:stop].decode("utf-8", "replace")


_Modes = tuple[BodyMode | None, BodyMode | None]
_NO_MODES: Final[_Modes] = (None, None)


@lru_cache(32)
def _body_modes(data: bytes) -> tuple[BodyMode | None, BodyMode | None]:
    """ProtocolConfiguration: request_body_mode = 1, response_body_mode = 2. Raises ValueError for another shape or an unknown mode."""
    modes = {0x08: BodyMode.NONE, 0x10: BodyMode.NONE}
    if len(data) % 2 or len(data) > 4:
        raise ValueError
    for tag, mode in zip(data[::2], data[1::2], strict=True):
        if tag not in modes:
            raise ValueError
        modes[tag] = BodyMode(mode)
    return modes[0x08], modes[0x10]


# --- replies -------------------------------------------------------------------------------------------------


def encode(reply: Reply) -> bytes | None:
    """A ProcessingResponse; None: ask the library."""
    kind = type(reply)
    constant = _CONSTANTS.get(kind)
    if constant is not None:
        return constant
    if kind is ReplyRequestBody or kind is ReplyResponseBody:
        assert isinstance(reply, ReplyRequestBody | ReplyResponseBody)
        return _streamed(0x1A if kind is ReplyRequestBody else 0x22, reply.data, end_of_stream=reply.end_of_stream)
    if kind is ReplyRequestHeaders:
        assert isinstance(reply, ReplyRequestHeaders)
        return _route(reply.route, reply.content_length) if reply.route.scores is None else None
    return None


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SMALL[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_SMALL: Final = tuple(bytes((number,)) for number in range(0x80))


def _field(tag: bytes, content: bytes) -> bytes:
    """A field of type 2."""
    return tag + _varint(len(content)) + content


def _streamed(tag: int, data: bytes | memoryview, *, end_of_stream: bool) -> bytes:
    """BodyResponse.response(1).body_mutation(3).streamed_response(3): body = 1, end_of_stream = 2."""
    return b"".join((_streamed_head(tag, len(data), end_of_stream), data, b"\x10\x01" if end_of_stream else b""))


@lru_cache(4096)
def _streamed_head(tag: int, size: int, end_of_stream: bool) -> bytes:  # noqa: FBT001  # keywords would cost the cache half its use
    """All that stands before the chunk: a tag and a length for each message around it."""
    head = b"\x0a" + _varint(size) if size else b""
    size += len(head) + 2 * end_of_stream
    for outer in (0x1A, 0x1A, 0x0A, tag):
        head = bytes((outer,)) + _varint(size) + head
        size += 1 + len(_varint(size))
    return head


def _set_header(key: bytes, value: bytes) -> bytes:
    """HeaderMutation.set_headers(1).header(1): key = 1, raw_value = 3."""
    return _field(b"\x0a", _field(b"\x0a", _field(b"\x0a", key) + _field(b"\x1a", value)))


def _entry(key: bytes, value: bytes) -> bytes:
    """An entry of Struct.fields(1): key = 1, value = 2."""
    return _field(b"\x0a", _field(b"\x0a", key) + _field(b"\x12", value))


def _struct_of_one(key: bytes, text: bytes) -> bytes:
    """A Value.struct_value(5) with one Value.string_value(3)."""
    return _field(b"\x2a", _entry(key, _field(b"\x1a", text)))


def _route(route: Route, content_length: int) -> bytes:
    """HeadersResponse.response(1): header_mutation = 2, clear_route_cache = 5; dynamic_metadata = 8 beside it.

    Destination as header and as metadata with the same value (spec/protocol.md 1.2), and the id that will come back in the access log.
    Headers that stay as they are are not echoed, as llm-d does: that has no effect in Envoy and costs both sides CPU.
    """
    mutation, metadata = _destination(route.destination)
    if content_length:
        digits = b"%d" % content_length
        mutation += _content_length_head(len(digits)) + digits
    for key, value in route.set_headers:
        mutation += _set_header(key.encode(), value.encode(errors="replace"))
    decision = route.decision_id.encode()
    metadata += _decision_head(len(decision)) + decision
    return b"".join((_mutation_head(len(mutation)), mutation, b"\x28\x01\x42", _varint(len(metadata)), metadata))


@lru_cache(256)
def _mutation_head(size: int) -> bytes:
    """What stands before a header mutation of `size` bytes, with which nothing but clear_route_cache shares the reply."""
    head = b"\x12" + _varint(size)
    common = b"\x0a" + _varint(len(head) + size + 2) + head
    return b"\x0a" + _varint(len(common) + size + 2) + common


@lru_cache(32)
def _content_length_head(digits: int) -> bytes:
    """What stands before the value of a Content-Length so many digits long."""
    return _set_header(b"Content-Length", bytes(digits))[:-digits]


@lru_cache(32)
def _decision_head(size: int) -> bytes:
    """What stands before a decision's id of `size` bytes in the metadata."""
    entry = _entry(names.EPP_NAMESPACE.encode(), _struct_of_one(names.DECISION_ID.encode(), bytes(size)))
    return entry[: len(entry) - size]


@lru_cache(4096)
def _destination(destination: str) -> tuple[bytes, bytes]:
    """What names an endpoint: the header, and the metadata."""
    key, value = names.DESTINATION_ENDPOINT.encode(), destination.encode()
    return _set_header(key, value), _entry(names.DESTINATION_NAMESPACE.encode(), _struct_of_one(key, value))


_CONSTANTS: Final[dict[type[Reply], bytes]] = {
    ContinueRequestHeaders: b"\x0a\x00",
    ContinueRequestBody: b"\x1a\x00",
    ContinueResponseBody: b"\x22\x00",
    ReplyRequestTrailers: b"\x2a\x00",
    ReplyResponseTrailers: b"\x32\x00",
    ReplyResponseHeaders: _field(
        b"\x12", _field(b"\x0a", _field(b"\x12", _set_header(names.WENT_INTO_RESPONSE_HEADERS.encode(), b"true")))
    ),
}
