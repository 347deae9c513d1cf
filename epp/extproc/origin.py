"""The name of a request that only the data plane can give: when it began, and the client's address and port.

Envoy tells both twice, in the ext_proc filter's request_attributes ("request.time", "source.address") and in the access
log's entry (start_time, downstream_remote_address). Unlike x-request-id no client can choose them. Envoy's clock counts
microseconds: "2026-01-31T12:00:00.41866+00:00" here and 418660000 nanoseconds there are the same (Envoy 1.40). What is finer
is cut off on both sides.

Pure functions, called where an entry of the access log names no decision.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.message import DecodeError

from epp import names
from epp._proto import ext_proc_pb2 as pb

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def from_attributes(entry: bytes) -> str | None:
    """From the first entry of a ProcessingRequest's `attributes`; None where it does not say both, or not as Envoy does."""
    message = pb.ProcessingRequest.AttributesEntry()
    try:
        message.ParseFromString(entry)
    except DecodeError:
        return None
    fields = message.value.fields
    time, address = (fields[name].string_value for name in names.ORIGIN_ATTRIBUTES)
    try:
        micros = (datetime.fromisoformat(time) - _EPOCH) // _MICROSECOND
    except (ValueError, TypeError):  # no time at all; a time without an offset
        return None
    return f"{micros * 1_000}|{address}" if address else None


def of(seconds: int, nanos: int, address: str) -> str:
    """The same from the fields of a protobuf Timestamp: nanoseconds since 1970, "|", address."""
    return f"{seconds * 1_000_000_000 + nanos // 1_000 * 1_000}|{address}"
