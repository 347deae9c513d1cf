"""The usual entry of Envoy's access log, read by hand: there is one for every request, of fifty fields of which ten matter.

Beside the protobuf library, as `wire`: what is not laid out as Envoy does it, names no decision or tells no end is for the library
(None). Tests hold both to the same answers. In C this takes a quarter of the library's time, which makes an object for each message
it is asked for; in Python it would take twice as long, so `access_log` asks here in the compiled build only.

Field numbers are those of proto/access_log.proto; a tag is (number << 3 | type), type 0 a varint, type 2 a length and so many bytes.
Pure; the caches are bounded.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from epp import names
from epp._proto import access_log_pb2 as pb
from epp._proto import core_pb2
from epp.domain import DecisionId, EndCause, RequestEnd
from epp.extproc import end_causes
from epp.extproc.wire import extent

_VARINT: Final = 0
_BYTES: Final = 2

# HTTPAccessLogEntry
_COMMON: Final = 0x0A
_PROTOCOL_VERSION: Final = 0x10
_REQUEST: Final = 0x1A
_RESPONSE: Final = 0x22
# AccessLogCommon
_FIRST_BYTE: Final = 9 << 3 | 2
_UPSTREAM: Final = 13 << 3 | 2
_FLAGS: Final = 16 << 3 | 2
_METADATA: Final = 17 << 3 | 2
_DURATION: Final = 23 << 3 | 2
_ATTEMPTS: Final = 24 << 3
_TYPE: Final = 33 << 3
# HTTPRequestProperties
_REQUEST_BODY_BYTES: Final = 12 << 3
# HTTPResponseProperties
_CODE: Final = 1 << 3 | 2
_RESPONSE_BODY_BYTES: Final = 3 << 3
_DETAILS: Final = 6 << 3 | 2
_USUAL_DETAILS: Final = b"via_upstream"

_NAMESPACE: Final = b"\x0a" + bytes((len(names.EPP_NAMESPACE),)) + names.EPP_NAMESPACE.encode() + b"\x12"
_KEY: Final = b"\x0a" + bytes((len(names.DECISION_ID),)) + names.DECISION_ID.encode() + b"\x12"

# An entry whose type is not set is written at the end, too.
_AT_THE_END: Final = (int(pb.NOT_SET), int(pb.DOWNSTREAM_END))


def entries(data: bytes) -> Sequence[bytes] | None:
    """The HTTPAccessLogEntry messages in a StreamAccessLogsMessage; None: ask the library."""
    found: list[bytes] = []
    try:
        at = 0
        if data[0] == 0x0A:  # the identifier
            _, at = extent(data, 1)
        if data[at] != 0x12:
            return None
        at, stop = extent(data, at + 1)
        if stop != len(data):
            return None
        while at < stop:
            if data[at] != 0x0A:
                return None
            begin, at = extent(data, at + 1)
            found.append(data[begin:at])
    except (IndexError, ValueError):
        return None
    return found if at == stop else None


def request_end(entry: bytes) -> RequestEnd | None:
    """What an entry tells of the decision it names; None: ask the library."""
    try:
        if entry[0] != _COMMON:
            return None
        at, stop = extent(entry, 1)
        end = _common(entry, at, stop)
        if end is None:
            return None
        size = len(entry)
        while stop < size:
            tag = entry[stop]
            if tag == _PROTOCOL_VERSION:
                _, stop = _varint(entry, stop + 1)
                continue
            at, stop = extent(entry, stop + 1)
            if tag == _REQUEST:
                end.bytes_received = _request_body_bytes(entry, at, stop)
            elif tag == _RESPONSE:
                _response(entry, at, stop, end)
            else:
                return None
    except (IndexError, ValueError, DecodeError):  # cut off; another shape
        return None
    return end if stop == size else None


def _common(entry: bytes, at: int, stop: int) -> RequestEnd | None:
    """AccessLogCommon. This and all below raise IndexError and ValueError for another shape, so that nothing is taken from half a message."""
    decision = served = flags = b""
    first_byte: float | None = None
    duration: float | None = None
    attempts = kind = 0
    while at < stop:
        tag = entry[at]
        at += 1
        if tag >= 0x80:  # fields from 16 on
            high = entry[at]
            if high >= 0x80:
                return None
            tag += (high - 1) << 7
            at += 1
        if tag & 7 == _BYTES:
            begin, at = extent(entry, at)
            if tag == _METADATA:
                decision = _decision(entry, begin, at)
            elif tag == _UPSTREAM:
                served = entry[begin:at]
            elif tag == _DURATION:
                duration = _seconds(entry, begin, at)
            elif tag == _FIRST_BYTE:
                first_byte = _seconds(entry, begin, at)
            elif tag == _FLAGS:
                flags = entry[begin:at]
        elif tag & 7 == _VARINT:
            value, at = _varint(entry, at)
            if tag == _ATTEMPTS:
                attempts = value
            elif tag == _TYPE:
                kind = value
        else:
            return None
    if at != stop or not decision or kind not in _AT_THE_END:
        return None
    short = _short_flags(flags) if flags else ()
    return RequestEnd(
        DecisionId(decision.decode()),
        end_causes.cause(short, "") if short else EndCause.FINISHED,
        None,
        _served(served) if served else None,
        duration,
        first_byte,
        attempts or None,
        short,
        0,
        0,
    )


def _request_body_bytes(entry: bytes, at: int, stop: int) -> int:
    """All that matters of HTTPRequestProperties."""
    found = 0
    while at < stop:
        tag = entry[at]
        if tag & 7 == _BYTES and tag < 0x80:
            _, at = extent(entry, at + 1)
        elif tag & 7 == _VARINT and tag < 0x80:
            value, at = _varint(entry, at + 1)
            if tag == _REQUEST_BODY_BYTES:
                found = value
        else:
            raise ValueError
    if at != stop:
        raise ValueError
    return found


def _response(entry: bytes, at: int, stop: int, end: RequestEnd) -> None:
    """HTTPResponseProperties."""
    while at < stop:
        tag = entry[at]
        if tag & 7 == _BYTES and tag < 0x80:
            begin, at = extent(entry, at + 1)
            if tag == _CODE:
                end.status = _status(entry, begin, at)
            elif tag == _DETAILS and entry[begin:at] != _USUAL_DETAILS:
                end.cause = end_causes.cause(end.response_flags, entry[begin:at].decode())
        elif tag & 7 == _VARINT and tag < 0x80:
            value, at = _varint(entry, at + 1)
            if tag == _RESPONSE_BODY_BYTES:
                end.bytes_sent = value
        else:
            raise ValueError
    if at != stop:
        raise ValueError


def _status(entry: bytes, at: int, stop: int) -> int | None:
    """UInt32Value: value = 1."""
    value = 0
    if at < stop:
        if entry[at] != 0x08:
            raise ValueError
        value, at = _varint(entry, at + 1)
    if at != stop or value >= 1 << 32:
        raise ValueError
    return value or None


def _decision(entry: bytes, at: int, stop: int) -> bytes:
    """The id in our namespace of Metadata.filter_metadata(1), where it is alone there; b"": it is not."""
    while at < stop:
        tag = entry[at]
        begin, at = extent(entry, at + 1)
        if tag == 0x0A and entry.startswith(_NAMESPACE, begin):
            # Struct.fields(1), of one entry: key = 1, value = 2; Value.string_value(3).
            begin = _inner(entry, begin + len(_NAMESPACE), at)
            if entry[begin] != 0x0A:
                return b""
            begin = _inner(entry, begin + 1, at)
            if not entry.startswith(_KEY, begin):
                return b""
            begin = _inner(entry, begin + len(_KEY), at)
            return entry[_inner(entry, begin + 1, at) : at] if entry[begin] == 0x1A else b""
    return b""


def _inner(data: bytes, at: int, stop: int) -> int:
    """Where the bytes begin whose length stands at `at`, and that end at `stop`."""
    begin, end = extent(data, at)
    if end != stop:
        raise ValueError
    return begin


def _seconds(entry: bytes, at: int, stop: int) -> float:
    """Duration: seconds = 1, nanos = 2."""
    seconds = nanos = 0
    while at < stop:
        tag = entry[at]
        value, at = _varint(entry, at + 1)
        if tag == 0x10:
            nanos = value
        elif tag == 0x08:
            seconds = value
        else:
            raise ValueError
    if at != stop:
        raise ValueError
    return seconds + nanos * 1e-9


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Not negative, nor beyond all that is counted here."""
    value = data[at]
    at += 1
    if value >= 0x80:
        value &= 0x7F
        shift = 7
        byte = data[at]
        while byte >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            at += 1
            byte = data[at]
            if shift > 49:
                raise ValueError
        value |= byte << shift
        at += 1
    return value, at


@lru_cache(4096)
def _served(address: bytes) -> str | None:
    return end_causes.host_port(core_pb2.Address.FromString(address).socket_address)


@lru_cache(256)
def _short_flags(flags: bytes) -> tuple[str, ...]:
    return end_causes.short_flags(pb.ResponseFlags.FromString(flags))
