"""What Envoy's access log tells about the end of an answer: one StreamAccessLogsMessage to RequestEnds (spec/protocol.md 10.1).

An entry finds its decision by the id we gave Envoy as dynamic metadata, never by a header a client could choose. Where
Envoy never took the id over, because the client left before, the entry's origin names the request. Where several pickers
listen to one Envoy, each gets every entry and leaves those of the others alone; an id tells whose it is (`new_id`).
Entries written before the end of a request are skipped. Pure functions, called on the event loop once per batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from epp import BUILD, names
from epp._proto import access_log_pb2 as pb
from epp._proto import core_pb2
from epp.domain import DecisionId, RequestEnd
from epp.errors import ProtocolError
from epp.extproc import end_causes, log_wire, origin

_M = TypeVar("_M", bound=Message)

_AT_THE_END: Final = frozenset((pb.NOT_SET, pb.DOWNSTREAM_END))
# Where it is faster than the library.
_BY_HAND: Final = BUILD == "compiled"


@dataclass(slots=True)
class AccessLogBatch:
    """One message's worth of entries."""

    ends: list[RequestEnd]
    """Of decisions of this picker, and of requests that carry no decision: those have an empty id, and may have an origin."""
    others: int
    """Ended requests that another picker routed."""


def new_id(instance: str, unique: str) -> DecisionId:
    """The id of a decision that the picker `instance` makes."""
    return DecisionId(f"{instance}{_SEPARATOR}{unique}")


_SEPARATOR: Final = "/"


def decode(data: bytes, instance: str) -> AccessLogBatch:
    """The ends in one message, for the picker `instance`. Raises ProtocolError where it is none."""
    batch = AccessLogBatch([], 0)
    for end in _ends(data):
        if end is None:
            continue
        if not end.decision_id or end.decision_id.rpartition(_SEPARATOR)[0] == instance:
            batch.ends.append(end)
        else:
            batch.others += 1
    return batch


def _ends(data: bytes) -> Sequence[RequestEnd | None]:
    """What each entry tells."""
    entries = log_wire.entries(data) if _BY_HAND else None
    if entries is not None:
        return [log_wire.request_end(entry) or read(_parsed(pb.HTTPAccessLogEntry(), entry)) for entry in entries]
    message = _parsed(pb.StreamAccessLogsMessage(), data)
    return [read(entry) for entry in message.http_logs.log_entry]


def _parsed(message: _M, data: bytes) -> _M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a {type(message).__name__}: {error}") from None
    return message


def read(entry: pb.HTTPAccessLogEntry) -> RequestEnd | None:
    """What any entry tells: byte counts are those of the HTTP bodies, a status is None where nothing was answered. None: no end."""
    common, response = entry.common_properties, entry.response
    if common.access_log_type not in _AT_THE_END:
        return None
    decision_id = _decision_id(common.metadata)
    flags = end_causes.short_flags(common.response_flags)
    return RequestEnd(
        decision_id,
        end_causes.cause(flags, response.response_code_details),
        status=response.response_code.value or None,
        served=end_causes.host_port(common.upstream_remote_address.socket_address),
        duration_s=_seconds(common.duration) if common.HasField("duration") else None,
        first_upstream_byte_s=(
            _seconds(common.time_to_first_upstream_rx_byte) if common.HasField("time_to_first_upstream_rx_byte") else None
        ),
        attempts=common.upstream_request_attempt_count or None,
        response_flags=flags,
        bytes_received=entry.request.request_body_bytes,
        bytes_sent=response.response_body_bytes,
        origin=None if decision_id else _origin(common),
    )


def _decision_id(metadata: core_pb2.Metadata) -> DecisionId:
    """ "": it names none."""
    namespaces = metadata.filter_metadata
    # Looking a missing key up with [] would add it.
    if names.EPP_NAMESPACE not in namespaces:
        return DecisionId("")
    fields = namespaces[names.EPP_NAMESPACE].fields
    return DecisionId(fields[names.DECISION_ID].string_value if names.DECISION_ID in fields else "")


def _origin(common: pb.AccessLogCommon) -> str | None:
    client = end_causes.host_port(common.downstream_remote_address.socket_address)
    return origin.of(common.start_time.seconds, common.start_time.nanos, client) if client else None


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9
