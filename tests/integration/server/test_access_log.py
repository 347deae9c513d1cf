"""Envoy's access log over real gRPC on loopback."""

import logging

import grpc.aio
import pytest

from epp import names
from epp._proto import access_log_pb2 as pb
from epp.testing.waiting import eventually
from tests.integration.server.messages import request_headers
from tests.integration.server.rig import Rig


def logger_stream(rig: Rig) -> grpc.aio.StreamUnaryCall:
    return rig.channel.stream_unary(f"/{names.ACCESS_LOG_SERVICE}/StreamAccessLogs")()


def entries(*decisions: str | None) -> bytes:
    message = pb.StreamAccessLogsMessage(identifier={"log_name": "epp"})
    for decision in decisions:
        common = message.http_logs.log_entry.add().common_properties
        if decision is not None:
            common.metadata.filter_metadata["epp"].update({"decision": decision})
    return message.SerializeToString()


async def test_ends_reach_the_director(rig: Rig) -> None:
    """Each entry is booked as it comes, and it is known how many Envoys log to us."""
    assert rig.service.access_loggers == 0
    call = logger_stream(rig)
    await call.write(entries("d-1", None, "other/d-1", "d-2"))
    await eventually(lambda: len(rig.director.ends) == 3)
    assert rig.service.access_loggers == 1
    await call.write(entries("d-3"))
    await eventually(lambda: len(rig.director.ends) == 4)
    assert [end.decision_id for end in rig.director.ends] == ["d-1", "", "d-2", "d-3"]
    assert rig.director.unmatched_reasons == ["other_instance"]
    await call.done_writing()
    assert await call == b""
    assert rig.service.access_loggers == 0


async def test_a_lost_logger_is_not_counted(rig: Rig) -> None:
    """An Envoy that goes away without a word is noticed."""
    call = logger_stream(rig)
    await call.write(entries("d-1"))
    await eventually(lambda: rig.service.access_loggers == 1)
    call.cancel()
    await eventually(lambda: rig.service.access_loggers == 0)


async def test_one_end_that_cannot_be_booked_loses_no_other(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A bug met with one entry is logged; the entries after it and the stream live on."""
    rig.director.poison = "d-2"
    call = logger_stream(rig)
    await call.write(entries("d-1", "d-2", "d-3"))
    await eventually(lambda: len(rig.director.ends) == 2)
    assert [end.decision_id for end in rig.director.ends] == ["d-1", "d-3"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "the end of decision d-2 could not be booked: this is a bug in epp"
    ]
    assert rig.service.access_loggers == 1
    call.cancel()


async def test_garbage(rig: Rig) -> None:
    """Bytes that are no access log end the stream with a reason."""
    call = logger_stream(rig)
    await call.write(b"\xff\xff\xff")
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a StreamAccessLogsMessage" in await call.details()
    await eventually(lambda: rig.service.access_loggers == 0)


async def test_whether_a_data_plane_logs(rig: Rig) -> None:
    """The end of an ext_proc stream comes with the word whether its host sends us a log, too."""
    for case in ("before", "while"):
        if case == "while":
            call = logger_stream(rig)
            await call.write(entries("d-0"))
            await eventually(lambda: rig.service.access_loggers == 1)
        stream = rig.open()
        await stream.send(request_headers(end_of_stream=True, case=case))
        await stream.finish()
    assert rig.director.logged == [False, True]
    call.cancel()
    await eventually(lambda: rig.service.access_loggers == 0)
