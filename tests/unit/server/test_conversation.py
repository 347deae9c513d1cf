"""One ext_proc stream without a transport: cancelled, or broken, at each of its awaits in turn."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from epp._proto import ext_proc_pb2 as pb
from epp.domain import DecisionId, RequestEnd
from epp.extproc.events import Route
from epp.reporter import Reporter
from epp.server.conversation import StreamGoneError, converse

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

    async def pick(self, headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        self._checkpoint()
        self.picked = True
        return Route("10.0.0.1:8000", DecisionId("d-1"))

    def ended(self, end: RequestEnd) -> None:
        raise AssertionError

    def unmatched(self, reason: str) -> None:
        raise AssertionError

    def stream_closed(self, decision_id: DecisionId, *, routed: bool, response_seen: bool, response_complete: bool) -> None:
        self.closed.append(decision_id)
        self.routed = routed


@pytest.mark.parametrize("at", range(1, AWAITS + 1))
@pytest.mark.parametrize("failure", [asyncio.CancelledError(), StreamGoneError("reset")], ids=["cancelled", "broken"])
async def test_every_await(at: int, failure: BaseException) -> None:
    """Wherever a stream is cut, the cut is passed on at once, and the director hears once of the end of its decision, and whether it took effect."""
    stage = Stage(at, failure)
    with pytest.raises(type(failure)):
        await converse(stage.read, stage.write, director=stage, reporter=Reporter(), max_body=100_000)
    assert stage.awaits == at
    assert stage.closed == (["d-1"] if stage.picked else [])
    assert stage.routed == (stage.writes >= REQUEST_REPLIES)


async def test_an_uncut_stream_has_these_awaits() -> None:
    """The table above is complete, and the stream that runs to its end closes its decision once too."""
    stage = Stage(0, AssertionError())
    await converse(stage.read, stage.write, director=stage, reporter=Reporter(), max_body=100_000)
    assert stage.awaits == AWAITS
    assert stage.closed == ["d-1"]
