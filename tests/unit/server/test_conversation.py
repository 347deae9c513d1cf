"""One ext_proc stream without a transport: cancelled, or broken, at each of its awaits in turn."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

import pytest

from epp._proto import ext_proc_pb2 as pb
from epp.domain import DecisionId, RequestEnd, StreamClosed
from epp.extproc.events import Route
from epp.extproc.gathering import BodyRoom
from epp.reporter import Reporter
from epp.server.conversation import Context, Conversation, StreamGoneError, TaskConversation

MESSAGES = [
    pb.ProcessingRequest(request_headers=pb.HttpHeaders()),
    pb.ProcessingRequest(request_body=pb.HttpBody(body=bytes(70_000))),
    pb.ProcessingRequest(request_body=pb.HttpBody(end_of_stream=True)),
    pb.ProcessingRequest(response_headers=pb.HttpHeaders()),
    pb.ProcessingRequest(response_body=pb.HttpBody(end_of_stream=True)),
]
# 5 messages and the end are read; 1 pick; headers, two body chunks, response headers and response body are written.
AWAITS = 6 + 1 + 5
# Headers and two body chunks: with all of them out, the request is on its way.
REQUEST_REPLIES = 3


class Stage:
    """Transport and director in one; raises `failure` at the await number `at`."""

    def __init__(self, at: int, failure: BaseException) -> None:
        self._at = at
        self._failure = failure
        self._messages = [message.SerializeToString() for message in MESSAGES]
        self.awaits = 0
        self.picked = False
        self.closed: list[DecisionId] = []
        self.routed = False
        self.writes = 0
        self.skip_response = False
        self.room = BodyRoom(100_000)

    def _checkpoint(self) -> None:
        self.awaits += 1
        if self.awaits == self._at:
            raise self._failure

    async def read(self) -> bytes | None:
        self._checkpoint()
        return self._messages.pop(0) if self._messages else None

    async def write(self, data: bytes) -> None:
        self._checkpoint()
        self.writes += 1

    async def pick(
        self,
        headers: Mapping[str, str],
        subset: Sequence[str] | None,
        body: bytes | None,
        *,
        body_follows: bool = False,
        attributes: bytes | None = None,
    ) -> Route:
        self._checkpoint()
        self.picked = True
        return Route("10.0.0.1:8000", DecisionId("d-1"), skip_response=self.skip_response)

    def ended(self, end: RequestEnd) -> None:
        raise AssertionError

    def unmatched(self, reason: str) -> None:
        raise AssertionError

    def stream_closed(self, decision_id: DecisionId, closed: StreamClosed) -> None:
        self.closed.append(decision_id)
        self.routed = closed.routed


def conversation(stage: Stage) -> TaskConversation:
    """Between a stage and itself."""
    talk = Conversation(Context(stage, Reporter(), max_body=100_000, now=itertools.count().__next__, logs=(), room=stage.room), "10.9.9.9")
    return TaskConversation(talk, stage.read, stage.write)


@pytest.mark.parametrize("at", range(1, AWAITS + 1))
@pytest.mark.parametrize("failure", [asyncio.CancelledError(), StreamGoneError("reset")], ids=["cancelled", "broken"])
async def test_every_await(at: int, failure: BaseException) -> None:
    """Wherever a stream is cut, the cut is passed on at once, the director hears once of the end of its decision and whether it took effect, and its body takes no room."""
    stage = Stage(at, failure)
    with pytest.raises(type(failure)):
        await conversation(stage).run()
    assert stage.awaits == at
    assert stage.closed == (["d-1"] if stage.picked else [])
    assert stage.routed == (stage.writes >= REQUEST_REPLIES)
    assert stage.room.taken == 0


async def test_an_uncut_stream_has_these_awaits() -> None:
    """The table above is complete, and the stream that runs to its end closes its decision once too."""
    stage = Stage(0, AssertionError())
    await conversation(stage).run()
    assert stage.awaits == AWAITS
    assert stage.closed == ["d-1"]


async def test_a_stream_whose_answer_nobody_needs_ends_with_its_request() -> None:
    """S14: where the route says so, the stream is over, with OK, as soon as the request is on its way."""
    stage = Stage(0, AssertionError())
    stage.skip_response = True
    await conversation(stage).run()
    assert stage.writes == REQUEST_REPLIES
    assert stage.closed == ["d-1"]


class Slow(Stage):
    """A peer that falls silent after `given` messages, and is asked to be let go at that moment."""

    def __init__(self, messages: Sequence[pb.ProcessingRequest], given: int) -> None:
        super().__init__(0, AssertionError())
        self._messages = [message.SerializeToString() for message in messages]
        self.silent = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.written: list[pb.ProcessingResponse] = []
        self._given = given

    async def read(self) -> bytes | None:
        if self.awaits == self._given:
            self.silent.set()
            await self.goes_on.wait()
        return await super().read()

    async def write(self, data: bytes) -> None:
        self.written.append(pb.ProcessingResponse.FromString(data))

    def _checkpoint(self) -> None:
        self.awaits += 1


JSON_HEADERS = pb.ProcessingRequest()
JSON_HEADERS.response_headers.headers.headers.add(key="content-type", raw_value=b"application/json")
JSON_CHUNK = pb.ProcessingRequest(response_body=pb.HttpBody(body=b"half of it"))


async def test_an_answer_under_way_is_let_go_on_drain() -> None:
    """The stream ends with OK, and what was held of a JSON answer goes out first: no byte of it is lost."""
    stage = Slow([*MESSAGES[:3], JSON_HEADERS, JSON_CHUNK], given=3 + 1 + 2)
    talk = conversation(stage)
    running = asyncio.create_task(talk.run())
    await stage.silent.wait()
    talk.drain()
    await running
    assert stage.written[-1].response_body.response.body_mutation.streamed_response.body == b"half of it"
    assert stage.closed == ["d-1"]


async def test_a_request_that_is_still_being_read_is_served_on_drain() -> None:
    """Draining loses no request: it is picked for and answered, and only then the stream ends."""
    stage = Slow(MESSAGES, given=2)
    talk = conversation(stage)
    running = asyncio.create_task(talk.run())
    await stage.silent.wait()
    talk.drain()
    stage.goes_on.set()
    await running
    assert [reply.WhichOneof("response") for reply in stage.written] == ["request_headers", "request_body", "request_body"]
    assert stage.closed == ["d-1"]


async def test_a_cancellation_is_not_mistaken_for_a_drain() -> None:
    """A stream that is cut while it drains is still cut."""
    stage = Slow(MESSAGES, given=1)
    talk = conversation(stage)
    running = asyncio.create_task(talk.run())
    await stage.silent.wait()
    talk.drain()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
