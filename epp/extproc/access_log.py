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
from epp._proto import core_pb2
from epp.domain import DecisionId, EndCause, RequestEnd
from epp.errors import ProtocolError
from epp.extproc import origin


@dataclass(slots=True)
class AccessLogBatch:
    """One message's worth of entries."""

    ends: list[RequestEnd]
    """Of decisions of this picker, and of requests that carry no decision: those have an empty id, and may have an origin."""
    others: int
    """Ended requests that another picker routed."""


# Field of ResponseFlags to the short form that Envoy's %RESPONSE_FLAGS% and its documentation use.
FLAGS: Final = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}
# The client's side ended it: connection closed, stream reset, broken HTTP.
CLIENT_FLAGS: Final = frozenset(("DC", "DR", "DPE"))
# The model server, or the way to it, failed. An idle timeout counts here: it takes a server that is silent for minutes.
UPSTREAM_FLAGS: Final = frozenset(("LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "URX", "SI", "UMSDR", "UPE", "NR", "NC", "DF"))


def new_id(instance: str, unique: str) -> DecisionId:
    """The id of a decision that the picker `instance` makes."""
    return DecisionId(f"{instance}{_SEPARATOR}{unique}")


_SEPARATOR: Final = "/"


def decode(data: bytes, instance: str) -> AccessLogBatch:
    """The ends in one message, for the picker `instance`. Raises ProtocolError where it is none."""
    message = pb.StreamAccessLogsMessage()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a StreamAccessLogsMessage: {error}") from None
    batch = AccessLogBatch([], 0)
    for entry in message.http_logs.log_entry:
        common = entry.common_properties
        if common.access_log_type not in _AT_THE_END:
            continue
        decision_id = _decision_id(common.metadata)
        if not decision_id:
            end = _request_end(entry, DecisionId(""))
            end.origin = _origin(common)
            batch.ends.append(end)
        elif decision_id.rpartition(_SEPARATOR)[0] == instance:
            batch.ends.append(_request_end(entry, decision_id))
        else:
            batch.others += 1
    return batch


_AT_THE_END: Final = frozenset((pb.NOT_SET, pb.DOWNSTREAM_END))


def _decision_id(metadata: core_pb2.Metadata) -> DecisionId | None:
    namespaces = metadata.filter_metadata
    # Looking a missing key up with [] would add it.
    if names.EPP_NAMESPACE not in namespaces:
        return None
    fields = namespaces[names.EPP_NAMESPACE].fields
    return DecisionId(fields[names.DECISION_ID].string_value) if names.DECISION_ID in fields else None


def _origin(common: pb.AccessLogCommon) -> str | None:
    client = _host_port(common.downstream_remote_address.socket_address)
    return origin.of(common.start_time.seconds, common.start_time.nanos, client) if client else None


def _request_end(entry: pb.HTTPAccessLogEntry, decision_id: DecisionId) -> RequestEnd:
    """Byte counts are those of the HTTP bodies; a status is None where nothing was answered."""
    common, response = entry.common_properties, entry.response
    flags = tuple(FLAGS[field.name] for field, _ in common.response_flags.ListFields())
    return RequestEnd(
        decision_id,
        _cause(flags, response.response_code_details),
        status=response.response_code.value or None,
        served=_host_port(common.upstream_remote_address.socket_address),
        duration_s=_seconds(common.duration) if common.HasField("duration") else None,
        first_upstream_byte_s=(
            _seconds(common.time_to_first_upstream_rx_byte) if common.HasField("time_to_first_upstream_rx_byte") else None
        ),
        attempts=common.upstream_request_attempt_count or None,
        response_flags=flags,
        bytes_received=entry.request.request_body_bytes,
        bytes_sent=response.response_body_bytes,
    )


def _cause(flags: tuple[str, ...], details: str) -> EndCause:
    """Why the answer ended, from Envoy's flags, or from its details where it set none.

    The client's leaving outranks an upstream failure: then nobody waited for the answer any more.
    """
    if not CLIENT_FLAGS.isdisjoint(flags) or details.startswith("downstream_"):
        return EndCause.CLIENT_GONE
    if not UPSTREAM_FLAGS.isdisjoint(flags) or details.startswith("upstream_reset"):
        return EndCause.UPSTREAM_FAILED
    return EndCause.FINISHED


def _host_port(address: core_pb2.SocketAddress) -> str | None:
    """ "ip:port", IPv6 in brackets as in a destination; None where there is none, such as an upstream that was not reached."""
    host = address.address
    if not host:
        return None
    return f"[{host}]:{address.port_value}" if ":" in host else f"{host}:{address.port_value}"


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9
