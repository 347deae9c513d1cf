"""The usual entry of Envoy's access log, read fast: there is one for every request, of fifty fields of which ten matter.

`access_log` asks here first, for entries of proto/access_log_view.proto, where most messages are bytes: the library makes an object
for each message it is asked for, which would be half the cost of an entry. Addresses, flags and codes repeat and are read once;
durations and the decision's id are read by hand. What is not laid out as Envoy does it, names no decision or tells no end is for the
library. Tests hold both to the same answers. Pure; the caches are bounded.
"""

from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import UInt32Value

from epp import names
from epp._proto import access_log_pb2 as pb
from epp._proto import access_log_view_pb2 as view
from epp._proto import core_pb2
from epp.domain import DecisionId, EndCause, RequestEnd
from epp.extproc import end_causes
from epp.extproc.wire import extent

# An entry whose type is not set is written at the end, too.
AT_THE_END: Final = frozenset((int(pb.NOT_SET), int(pb.DOWNSTREAM_END)))

_NAMESPACE: Final = b"\x0a" + bytes((len(names.EPP_NAMESPACE),)) + names.EPP_NAMESPACE.encode() + b"\x12"
_KEY: Final = b"\x0a" + bytes((len(names.DECISION_ID),)) + names.DECISION_ID.encode() + b"\x12"
_USUAL_DETAILS: Final = "via_upstream"


def request_end(entry: view.HTTPAccessLogEntry) -> RequestEnd | None:
    """What an entry tells of the decision it names; None: ask the library."""
    common, response = entry.common_properties, entry.response
    try:
        decision = _decision(common.metadata)
        if not decision or common.access_log_type not in AT_THE_END:
            return None
        flags = _short_flags(common.response_flags)
        details = response.response_code_details
        return RequestEnd(
            DecisionId(decision.decode()),
            EndCause.FINISHED if not flags and details == _USUAL_DETAILS else end_causes.cause(flags, details),
            _status(response.response_code),
            _served(common.upstream_remote_address),
            _seconds(common.duration),
            _seconds(common.time_to_first_upstream_rx_byte),
            common.upstream_request_attempt_count or None,
            flags,
            entry.request.request_body_bytes,
            response.response_body_bytes,
        )
    except (IndexError, ValueError, DecodeError):  # cut off; another shape
        return None


def _decision(metadata: bytes) -> bytes:
    """The id in our namespace of Metadata.filter_metadata(1), where it is alone there; b"": it is not. Raises IndexError and ValueError."""
    at, stop = 0, len(metadata)
    while at < stop:
        key = at
        begin, at = extent(metadata, at + 1)
        if metadata[key] == 0x0A and metadata.startswith(_NAMESPACE, begin):
            # Struct.fields(1), of one entry: key = 1, value = 2; Value.string_value(3).
            begin = _inner(metadata, begin + len(_NAMESPACE), at)
            if metadata[begin] != 0x0A:
                return b""
            begin = _inner(metadata, begin + 1, at)
            if not metadata.startswith(_KEY, begin):
                return b""
            begin = _inner(metadata, begin + len(_KEY), at)
            return metadata[_inner(metadata, begin + 1, at) : at] if metadata[begin] == 0x1A else b""
    return b""


def _inner(data: bytes, at: int, stop: int) -> int:
    """Where the bytes begin whose length stands at `at`. Raises ValueError where they do not end at `stop`."""
    begin, end = extent(data, at)
    if end != stop:
        raise ValueError
    return begin


def _seconds(duration: bytes) -> float:
    """Duration: seconds = 1, nanos = 2. Raises IndexError and ValueError, also where it may be absent: both look alike here."""
    if not duration:
        raise ValueError
    seconds = nanos = at = 0
    while at < len(duration):
        tag = duration[at]
        value = shift = 0
        while True:
            at += 1
            byte = duration[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 49:  # negative, or not of this world
                raise ValueError
        at += 1
        if tag == 0x10:
            nanos = value
        elif tag == 0x08:
            seconds = value
        else:
            raise ValueError
    return seconds + nanos * 1e-9


@lru_cache(256)
def _status(code: bytes) -> int | None:
    return UInt32Value.FromString(code).value or None


@lru_cache(4096)
def _served(address: bytes) -> str | None:
    return end_causes.host_port(core_pb2.Address.FromString(address).socket_address)


@lru_cache(256)
def _short_flags(flags: bytes) -> tuple[str, ...]:
    return end_causes.short_flags(pb.ResponseFlags.FromString(flags))
