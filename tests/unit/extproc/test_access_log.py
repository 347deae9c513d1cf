"""Access-log entries to ends of requests."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp._proto import access_log_pb2 as pb
from epp.domain import DecisionId, EndCause, RequestEnd
from epp.errors import ProtocolError
from epp.extproc import access_log, end_causes


def entry(message: pb.StreamAccessLogsMessage, decision: str | None = "me/d-1") -> pb.HTTPAccessLogEntry:
    """A new entry of the message."""
    log_entry: pb.HTTPAccessLogEntry = message.http_logs.log_entry.add()
    if decision is not None:
        log_entry.common_properties.metadata.filter_metadata["epp"].update({"decision": decision})
    return log_entry


def decode_one(log_entry: pb.HTTPAccessLogEntry) -> RequestEnd:
    """The end one entry tells."""
    message = pb.StreamAccessLogsMessage()
    message.http_logs.log_entry.append(log_entry)
    [end] = access_log.decode(message.SerializeToString(), "me").ends
    return end


def test_everything_an_entry_tells() -> None:
    """Status, endpoint that served, times, attempts and body sizes arrive with the decision they belong to."""
    log_entry = entry(pb.StreamAccessLogsMessage())
    common = log_entry.common_properties
    common.upstream_remote_address.socket_address.address = "10.0.0.1"
    common.upstream_remote_address.socket_address.port_value = 8000
    common.duration.seconds, common.duration.nanos = 1, 500_000_000
    common.time_to_first_upstream_rx_byte.nanos = 250_000_000
    common.upstream_request_attempt_count = 2
    common.access_log_type = pb.DOWNSTREAM_END
    log_entry.request.request_body_bytes = 5008
    log_entry.response.response_code.value = 200
    log_entry.response.response_body_bytes = 25
    log_entry.response.response_code_details = "via_upstream"
    assert decode_one(log_entry) == RequestEnd(
        DecisionId("me/d-1"),
        EndCause.FINISHED,
        status=200,
        served="10.0.0.1:8000",
        duration_s=1.5,
        first_upstream_byte_s=0.25,
        attempts=2,
        response_flags=(),
        bytes_received=5008,
        bytes_sent=25,
    )


def test_what_an_entry_leaves_out_is_unknown() -> None:
    """A request that never reached an endpoint has no status, endpoint, times or attempts."""
    assert decode_one(entry(pb.StreamAccessLogsMessage())) == RequestEnd(
        DecisionId("me/d-1"), EndCause.FINISHED, response_flags=(), bytes_received=0, bytes_sent=0
    )


def test_ipv6_endpoints_are_written_as_in_destinations() -> None:
    """The endpoint that served compares equal to the one that was chosen."""
    log_entry = entry(pb.StreamAccessLogsMessage())
    log_entry.common_properties.upstream_remote_address.socket_address.address = "fd00::1"
    log_entry.common_properties.upstream_remote_address.socket_address.port_value = 8000
    assert decode_one(log_entry).served == "[fd00::1]:8000"


@pytest.mark.parametrize(
    ("flags", "details", "cause", "short"),
    [
        (["downstream_connection_termination"], "downstream_remote_disconnect", EndCause.CLIENT_GONE, ("DC",)),
        (["downstream_remote_reset"], "", EndCause.CLIENT_GONE, ("DR",)),
        ([], "downstream_remote_disconnect", EndCause.CLIENT_GONE, ()),
        (["upstream_connection_failure"], "", EndCause.UPSTREAM_FAILED, ("UF",)),
        (["upstream_connection_termination"], "", EndCause.UPSTREAM_FAILED, ("UC",)),
        (["no_healthy_upstream"], "", EndCause.UPSTREAM_FAILED, ("UH",)),
        (["upstream_connection_failure", "upstream_retry_limit_exceeded"], "", EndCause.UPSTREAM_FAILED, ("UF", "URX")),
        ([], "upstream_reset_after_response_started{protocol_error}", EndCause.UPSTREAM_FAILED, ()),
        (["upstream_connection_failure", "downstream_connection_termination"], "", EndCause.CLIENT_GONE, ("UF", "DC")),
        (["delay_injected"], "via_upstream", EndCause.FINISHED, ("DI",)),
    ],
)
def test_causes(flags: list[str], details: str, cause: EndCause, short: tuple[str, ...]) -> None:
    """Flags, then Envoy's details, tell why a request ended; the flags are kept in Envoy's short form."""
    log_entry = entry(pb.StreamAccessLogsMessage())
    for flag in flags:
        setattr(log_entry.common_properties.response_flags, flag, True)
    log_entry.response.response_code_details = details
    end = decode_one(log_entry)
    assert (end.cause, end.response_flags) == (cause, short)


def test_every_flag_has_a_short_form() -> None:
    """A flag added to the definitions cannot crash the decoder."""
    assert set(pb.ResponseFlags.DESCRIPTOR.fields_by_name) == set(end_causes.FLAGS)


def test_entries_that_name_no_decision() -> None:
    """Requests we did not route end without an id; metadata of others is not taken for ours."""
    message = pb.StreamAccessLogsMessage()
    entry(message, None)
    entry(message, None).common_properties.metadata.filter_metadata["envoy.lb"].update({"decision": "me/d-1"})
    entry(message, None).common_properties.metadata.filter_metadata["epp"].update({"other": "me/d-1"})
    entry(message, None).common_properties.metadata.filter_metadata["epp"].update({"decision": 7})
    entry(message)
    batch = access_log.decode(message.SerializeToString(), "me")
    assert [end.decision_id for end in batch.ends] == ["", "", "", "", "me/d-1"]
    assert [end.origin for end in batch.ends] == [None] * 5
    assert batch.others == 0


@pytest.mark.parametrize(("address", "named"), [("10.9.9.9", "10.9.9.9:5"), ("::1", "[::1]:5")])
def test_a_request_whose_decision_envoy_never_took_over_has_its_origin(address: str, named: str) -> None:
    """The same string as its ext_proc stream gave, so that the decision is found."""
    log_entry = entry(pb.StreamAccessLogsMessage(), None)
    common = log_entry.common_properties
    common.start_time.seconds, common.start_time.nanos = 1_795_457_249, 496_410_000
    common.downstream_remote_address.socket_address.address = address
    common.downstream_remote_address.socket_address.port_value = 5
    log_entry.response.response_code_details = "downstream_remote_disconnect"
    end = decode_one(log_entry)
    assert (end.decision_id, end.cause) == ("", EndCause.CLIENT_GONE)
    assert end.origin == f"1795457249496410000|{named}"


@pytest.mark.parametrize("other", ["you/d-1", "me/too/d-1", "m/d-1", "/d-1", "d-1"])
def test_decisions_of_other_pickers_are_counted(other: str) -> None:
    """Where several pickers listen to one Envoy, each entry reaches all of them."""
    message = pb.StreamAccessLogsMessage()
    entry(message, other)
    entry(message, access_log.new_id("me", "d-1"))
    batch = access_log.decode(message.SerializeToString(), "me")
    assert [end.decision_id for end in batch.ends] == ["me/d-1"]
    assert batch.others == 1


def test_an_instance_may_contain_the_separator() -> None:
    """Whatever somebody calls a picker, it finds its own."""
    message = pb.StreamAccessLogsMessage()
    entry(message, access_log.new_id("ns/epp-0", "d-1"))
    assert len(access_log.decode(message.SerializeToString(), "ns/epp-0").ends) == 1
    assert access_log.decode(message.SerializeToString(), "ns").others == 1


@pytest.mark.parametrize("moment", [pb.DOWNSTREAM_START, pb.DOWNSTREAM_PERIODIC])
def test_entries_written_before_the_end_are_no_ends(moment: pb.AccessLogType) -> None:
    """An Envoy that also logs starts and progress does not close requests early."""
    message = pb.StreamAccessLogsMessage()
    entry(message).common_properties.access_log_type = moment
    assert access_log.decode(message.SerializeToString(), "me") == access_log.AccessLogBatch([], 0)


@given(st.binary(max_size=64))
def test_garbage(data: bytes) -> None:
    """Any bytes are a batch or a ProtocolError."""
    with suppress(ProtocolError):
        access_log.decode(data, "me")
