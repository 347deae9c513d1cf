"""What the handlers know together, without a transport."""

import asyncio
import logging

import pytest

from epp import names
from epp._proto import ext_proc_pb2 as pb
from epp._proto import health_pb2
from epp.domain import DecisionId, StreamClosed
from epp.extproc.events import Route
from epp.reporter import Reporter
from epp.server.service import Repeats, Service
from epp.server.status import DONE, CallError, Ending, Status
from epp.testing.waiting import eventually

PROCESS = f"/{names.EXT_PROC_SERVICE}/Process"
CHECK = "/grpc.health.v1.Health/Check"
GET = pb.ProcessingRequest(request_headers=pb.HttpHeaders(end_of_stream=True)).SerializeToString()


class FakeCall:
    """A call that reads what the test puts in."""

    host = "10.0.0.9"
    interruption = Ending(Status.DEADLINE_EXCEEDED)

    def __init__(self, *messages: bytes | CallError | None) -> None:
        self.incoming: asyncio.Queue[bytes | CallError | None] = asyncio.Queue()
        for message in messages:
            self.incoming.put_nowait(message)
        self.sent: list[bytes] = []

    async def read(self) -> bytes | None:
        message = await self.incoming.get()
        if isinstance(message, CallError):
            raise message
        return message

    async def write(self, message: bytes) -> None:
        self.sent.append(message)


class World(Reporter):
    """Director, health and reporter in one."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.service = Service(self, self, self, max_body=1000, now=lambda: 1.0)

    async def pick(self, *_: object, **__: object) -> Route:
        return Route("10.0.0.1:8000", DecisionId("d-1"))

    def ended(self, *_: object) -> None:
        raise AssertionError

    def unmatched(self, reason: str) -> None:
        raise AssertionError

    def stream_closed(self, *told: object) -> None:
        if not isinstance(told[1], StreamClosed):
            self.codes.append(str(told[0]))

    def serving(self, service: str) -> bool | None:
        return True


@pytest.fixture
def world() -> World:
    return World()


async def test_a_cancelled_call_is_booked_as_what_it_is(world: World) -> None:
    """The transport knows why it cancels."""
    task = asyncio.ensure_future(world.service.methods[PROCESS](FakeCall()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.codes == ["DEADLINE_EXCEEDED"]


async def test_draining(world: World) -> None:
    """Calls that wait for an answer end with OK at once; one that begins later does as soon as its request is on its way."""
    open_call = FakeCall(GET)
    task = asyncio.ensure_future(world.service.methods[PROCESS](open_call))
    await eventually(lambda: bool(open_call.sent))
    assert not task.done()
    world.service.finish_answers()
    assert await task == DONE
    late = FakeCall(GET)
    assert await world.service.methods[PROCESS](late) == DONE
    assert len(late.sent) == 1
    assert world.codes == ["OK", "OK"]


async def test_what_a_peer_sent_instead_of_a_message(world: World) -> None:
    """Ends the call with the status it carries."""
    call = FakeCall(GET, CallError(Status.RESOURCE_EXHAUSTED, "too large"))
    assert await world.service.methods[PROCESS](call) == (Status.RESOURCE_EXHAUSTED, "too large")
    assert world.codes == ["RESOURCE_EXHAUSTED"]


async def test_a_probe_without_a_request(world: World) -> None:
    """Is told so; an empty request is one."""
    assert (await world.service.health_methods[CHECK](FakeCall(None))).status is Status.INVALID_ARGUMENT
    call = FakeCall(b"")
    assert await world.service.health_methods[CHECK](call) == DONE
    assert health_pb2.HealthCheckResponse.FromString(call.sent[0]).status == health_pb2.HealthCheckResponse.SERVING


async def test_alternating_errors_are_said_once_each(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Two filters configured wrongly in different ways do not fill the log between them."""
    for _ in range(5):
        for message in (b"", b"\xff\xff"):
            assert (await world.service.methods[PROCESS](FakeCall(message))).status is Status.INVALID_ARGUMENT
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2


def test_repeats_are_bounded() -> None:
    """The oldest text is forgotten first."""
    repeats = Repeats()
    texts = [str(n) for n in range(Repeats.REMEMBERED + 1)]
    assert {repeats.level(text) for text in texts} == {logging.WARNING}
    assert [repeats.level(text) for text in texts[1:]] == [logging.DEBUG] * Repeats.REMEMBERED
    assert repeats.level(texts[0]) == logging.WARNING
