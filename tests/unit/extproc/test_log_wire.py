"""The access log read by hand against the protobuf library: the same ends, whatever Envoy writes."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from epp._proto import access_log_pb2 as pb
from epp.errors import ProtocolError
from epp.extproc import access_log, end_causes, log_wire

small = st.integers(0, 2**31 - 1)
texts = st.text(max_size=12)
addresses = st.sampled_from(["10.0.0.1", "fd00::1", "", "pod.svc"])


def maybe(draw: Callable[..., Any], fill: Callable[[], None]) -> None:
    """Half of the entries have it."""
    if draw(st.booleans()):
        fill()


@st.composite
def entries(draw: Callable[..., Any]) -> pb.HTTPAccessLogEntry:
    """An entry with any of the fields we read, and metadata of others beside ours."""
    entry = pb.HTTPAccessLogEntry()
    common, response = entry.common_properties, entry.response
    metadata = common.metadata.filter_metadata

    def served() -> None:
        common.upstream_remote_address.socket_address.address = draw(addresses)
        common.upstream_remote_address.socket_address.port_value = draw(st.integers(0, 65535))

    def client() -> None:
        common.downstream_remote_address.socket_address.address = draw(addresses)
        common.start_time.seconds = draw(small)

    maybe(draw, lambda: metadata["envoy.lb"].update({draw(texts): draw(texts)}))
    maybe(draw, lambda: metadata["epp"].update({"decision": draw(st.sampled_from(["me/1", "you/2", "", "me/" + "x" * 200]))}))
    maybe(draw, lambda: metadata["epp"].update({draw(texts): draw(st.one_of(texts, st.floats(allow_nan=False)))}))
    maybe(draw, lambda: metadata[draw(texts)].update({"decision": "me/3"}))
    maybe(draw, served)
    maybe(draw, client)
    for duration in (common.duration, common.time_to_first_upstream_rx_byte):
        maybe(draw, duration.SetInParent)
        maybe(draw, lambda to=duration: setattr(to, "seconds", draw(st.integers(-5, 2**40))))  # type: ignore[misc]
        maybe(draw, lambda to=duration: setattr(to, "nanos", draw(st.integers(-5, 999_999_999))))  # type: ignore[misc]
    for flag in draw(st.lists(st.sampled_from(sorted(end_causes.FLAGS)), max_size=2)):
        setattr(common.response_flags, flag, True)
    common.upstream_request_attempt_count = draw(st.integers(0, 3))
    common.access_log_type = draw(st.sampled_from([pb.NOT_SET, pb.DOWNSTREAM_END, pb.DOWNSTREAM_END, pb.DOWNSTREAM_PERIODIC]))
    entry.request.request_body_bytes = draw(st.integers(0, 2**60))
    maybe(draw, response.response_code.SetInParent)
    maybe(draw, lambda: setattr(response.response_code, "value", draw(st.integers(0, 2**32 - 1))))
    response.response_body_bytes = draw(st.integers(0, 2**60))
    details = ["via_upstream", "", "downstream_remote_disconnect", "upstream_reset_before_response_started{é}"]
    response.response_code_details = draw(st.sampled_from(details))
    return entry


@given(entries())
def test_by_hand_as_by_the_library(entry: pb.HTTPAccessLogEntry) -> None:
    """What it answers at all is what the library answers."""
    quick = log_wire.request_end(entry.SerializeToString())
    assert quick is None or quick == access_log.read(entry)


def test_the_usual_entry_is_read_by_hand() -> None:
    """Of a request that was routed and answered; so the test above compares something."""
    entry = pb.HTTPAccessLogEntry()
    common = entry.common_properties
    common.metadata.filter_metadata["envoy.lb"].update({"x-gateway-destination-endpoint": "10.0.0.1:8000"})
    common.metadata.filter_metadata["epp"].update({"decision": "me/1"})
    common.duration.nanos = common.time_to_first_upstream_rx_byte.nanos = 5_000_000
    entry.response.response_code.value = 200
    end = log_wire.request_end(entry.SerializeToString())
    assert end is not None
    assert (end.decision_id, end.status, end.duration_s) == ("me/1", 200, 0.005)


@given(entries(), st.data())
def test_mangled_entries(entry: pb.HTTPAccessLogEntry, data: st.DataObject) -> None:
    """A byte that is another one, or the end too early: by hand nothing is raised, and all of it is a batch or a ProtocolError."""
    message = pb.StreamAccessLogsMessage()
    message.http_logs.log_entry.append(entry)
    mangled = bytearray(message.SerializeToString())
    mangled[data.draw(st.integers(0, len(mangled) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(mangled[: data.draw(st.integers(0, len(mangled)))])
    for found in log_wire.entries(cut) or ():
        log_wire.request_end(found)
    with suppress(ProtocolError):
        access_log.decode(cut, "me")


@given(st.lists(entries(), max_size=3), texts)
def test_messages_are_taken_apart(logged: list[pb.HTTPAccessLogEntry], name: str) -> None:
    """The first message of a stream names who logs; each has any number of entries."""
    message = pb.StreamAccessLogsMessage()
    message.http_logs.SetInParent()
    message.http_logs.log_entry.extend(logged)
    if name:
        message.identifier.log_name = name
    found = log_wire.entries(message.SerializeToString())
    assert found is not None
    assert [pb.HTTPAccessLogEntry.FromString(entry) for entry in found] == logged
