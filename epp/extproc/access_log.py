"""What Envoy's access log tells about the end of an answer: one StreamAccessLogsMessage to RequestEnds (spec/protocol.md 10.1).

An entry finds its decision by the id we gave Envoy as dynamic metadata, never by a header a client could choose. Where
Envoy never took the id over, because the client left before, the entry's origin names the request. Where several pickers
listen to one Envoy, each gets every entry and leaves those of the others alone; an id tells whose it is (`new_id`).
Entries written before the end of a request are skipped. Pure functions, called on the event loop once per batch.
"""

from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from epp import names
from epp._proto import access_log_pb2 as pb
from epp._proto import access_log_view_pb2 as view
from epp._proto import core_pb2
from epp.domain import DecisionId, RequestEnd
from epp.errors import ProtocolError
from epp.extproc import end_causes, log_view, origin


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
    try:
        message = view.StreamAccessLogsMessage.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a StreamAccessLogsMessage: {error}") from None
    batch = AccessLogBatch([], 0)
    for entry in message.http_logs.log_entry:
        end = log_view.request_end(entry) or by_the_library(entry.SerializeToString())
        if end is None:
            continue
        if not end.decision_id or end.decision_id.rpartition(_SEPARATOR)[0] == instance:
            batch.ends.append(end)
        else:
            batch.others += 1
    return batch


# --- what is not as usual -------------------------------------------------------------------------------------


def by_the_library(data: bytes) -> RequestEnd | None:
    """What any entry tells: byte counts are those of the HTTP bodies, a status is None where nothing was answered. None: no end.

    Raises ProtocolError where it is no entry.
    """
    try:
        entry = pb.HTTPAccessLogEntry.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not an HTTPAccessLogEntry: {error}") from None
    common, response = entry.common_properties, entry.response
    if common.access_log_type not in log_view.AT_THE_END:
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
