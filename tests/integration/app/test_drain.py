"""SIGTERM to a real process: nobody who came loses a stream, nobody new is invited (spec/protocol.md 5.7)."""

import signal
from pathlib import Path

import pytest

from epp import names
from epp._proto import access_log_pb2
from epp.server.status import Status
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually
from tests.integration.app.rig import REST, TRANSPORTS, config, draining, half_a_request, routed
from tests.integration.server.h2_peer import connect, framed
from tests.integration.server.messages import request_headers, response_body, response_headers

ENDPOINT = "127.0.0.1:8000"
AN_END = access_log_pb2.StreamAccessLogsMessage(identifier={"log_name": "epp"})
AN_END.http_logs.log_entry.add()
UNMATCHED = 'epp_unmatched_access_log_entries_total{reason="no_decision"}'

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


def flags(endpoints: Path, transport: str, drain: str) -> list[str]:
    return [f"--config-text={config(endpoints)}", f"--transport={transport}", f"--drain-timeout={drain}"]


async def test_it_serves_on_while_it_drains(endpoints: Path, transport: str) -> None:
    """Until Envoy has noticed it sends requests here, on old connections and new ones; each is answered."""
    async with PickerProcess(flags(endpoints, transport, "1h")) as picker, connect(picker.grpc_port) as old:
        begun = half_a_request(old)
        stopping = picker.signal(signal.SIGTERM)
        await draining(picker)
        assert "draining for 3600 s" in picker.log()
        async with connect(picker.grpc_port) as new:
            for stream in (begun, half_a_request(old), half_a_request(new)):
                stream.send(REST, end=True)
                assert await routed(stream) == ENDPOINT
                assert await stream.ended() == (Status.OK, "")
        assert not old.goaways
        assert not stopping.done()


async def test_a_second_signal_ends_it(endpoints: Path, transport: str) -> None:
    """Who is in a hurry does not wait for the drain; what is under way still ends well."""
    async with PickerProcess(flags(endpoints, transport, "1h")) as picker, connect(picker.grpc_port) as peer:
        answering = peer.request(request_headers(end_of_stream=True), response_headers(), response_body(b"data: 1"))
        assert await routed(answering) == ENDPOINT
        stopping = picker.signal(signal.SIGTERM)
        await draining(picker)
        picker.signal(signal.SIGTERM)
        assert await answering.ended() == (Status.OK, "")
        assert await stopping == 0
        assert "Traceback" not in picker.log()


@pytest.mark.parametrize("drain", ["0s", "100ms"])
async def test_the_drain_is_over(endpoints: Path, transport: str, drain: str) -> None:
    """Answers that come through the picker go on without it, and a data plane that logs to it holds nothing up."""
    async with PickerProcess(flags(endpoints, transport, drain)) as picker, connect(picker.grpc_port) as peer:
        log = peer.open(f"/{names.ACCESS_LOG_SERVICE}/StreamAccessLogs")
        log.send(framed(AN_END.SerializeToString()))
        answering = peer.request(request_headers(end_of_stream=True), response_headers(), response_body(b"data: 1"))
        await eventually(lambda: len(answering.replies()) == 3)
        assert await picker.signal(signal.SIGTERM) == 0
        assert await answering.ended() == (Status.OK, "")
        assert "Traceback" not in picker.log()


async def test_ends_are_booked_while_it_drains(endpoints: Path, transport: str) -> None:
    """What the data plane logs then counts as before."""
    async with PickerProcess(flags(endpoints, transport, "1h")) as picker, connect(picker.grpc_port) as peer:
        log = peer.open(f"/{names.ACCESS_LOG_SERVICE}/StreamAccessLogs")
        picker.signal(signal.SIGTERM)
        await draining(picker)
        log.send(framed(AN_END.SerializeToString()))

        async def counted() -> bool:
            return (await picker.metrics()).get(UNMATCHED) == 1.0

        await eventually(counted)
