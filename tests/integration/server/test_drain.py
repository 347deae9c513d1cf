"""Stopping: nobody's request is lost."""

import asyncio
from collections.abc import Mapping, Sequence

import ngh2
import pytest

from epp.domain import DecisionId
from epp.extproc.events import Route
from epp.server.status import Status
from epp.testing.waiting import eventually
from tests.integration.server.h2_peer import connect, framed
from tests.integration.server.messages import request_body, request_headers, response_body, response_headers, summary
from tests.integration.server.rig import FAST_ONLY, Rig

END = framed(request_body(b"{}", end_of_stream=True).SerializeToString())
LONG_S = 60.0


async def test_open_streams_end_well(rig: Rig) -> None:
    """Requests under way are routed, answers under way are let go with OK, and stopping does not wait for longer than they take."""
    gate = asyncio.Event()

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        if headers["x-case"] == "picking":
            await gate.wait()
        return Route("10.0.0.1:8000", DecisionId(headers["x-case"]))

    rig.director.script = script
    async with connect(rig.server.port) as peer, connect(rig.server.port) as idle:
        reading = peer.request(request_headers(case="reading"), request_body(b"{"))
        picking = peer.request(request_headers(case="picking"), request_body(b"{}", end_of_stream=True))
        answering = peer.request(request_headers(end_of_stream=True, case="answering"))
        await eventually(lambda: len(answering.replies()) == 1)
        answering.send(b"".join(framed(message.SerializeToString()) for message in (response_headers(), response_body(b"data: 1"))))
        await eventually(lambda: len(answering.replies()) == 3 and rig.director.picking == 1)
        stopping = asyncio.create_task(rig.server.stop(LONG_S))
        assert await answering.ended() == (Status.OK, "")
        await eventually(lambda: bool(peer.goaways))
        gate.set()
        assert await picking.ended() == (Status.OK, "")
        assert summary(picking.replies()) == ["request_headers", "request_body 2|"]
        reading.send(END)
        assert await reading.ended() == (Status.OK, "")
        assert summary(reading.replies()) == ["request_headers", "request_body 3|"]
        await stopping
        await eventually(lambda: peer.closed and idle.closed)
        assert {code for code, _ in peer.goaways} == {ngh2.ErrorCode.NO_ERROR}
    assert sorted(decision for decision, _, _ in rig.director.closed) == ["answering", "picking", "reading"]
    assert rig.notes.codes == ["OK"] * 3


@pytest.mark.parametrize("idle", [True, False])
@FAST_ONLY  # grpc refuses it
async def test_a_stream_that_crossed_the_goaway(rig: Rig, *, idle: bool) -> None:
    """What the peer sent before it knew is served: the last stream is named only after a round trip."""
    async with connect(rig.server.port) as peer:
        streams = [peer.request(request_headers(case="first"), end=False)] if not idle else []
        ping = peer.request(request_headers(end_of_stream=True), end=True)
        assert await ping.ended() == (Status.OK, "")
        stopping = asyncio.create_task(rig.server.stop(LONG_S))
        await asyncio.sleep(0)  # the notice is queued; the peer does not know
        streams.append(peer.request(request_headers(case="crossed")))
        await eventually(lambda: len(peer.goaways) == 2)
        assert peer.goaways == [(0, (1 << 31) - 1), (0, streams[-1].id)]
        for stream in streams:
            stream.send(END)
            assert await stream.ended() == (Status.OK, "")
        await stopping
    assert sorted(decision for decision, _, _ in rig.director.closed) == sorted(["d-1", "crossed", *["first"][idle:]])


async def test_a_window_that_is_just_used_up(rig: Rig) -> None:
    """An answer whose last byte closed the peer's window still ends with its status."""
    request = request_headers(end_of_stream=True)
    async with connect(rig.server.port) as probe:
        stream = probe.request(request, end=True)
        await stream.ended()
        size = len(stream.body)
    async with connect(rig.server.port, window=size, reads=False) as peer:
        stream = peer.request(request)
        await eventually(lambda: len(stream.body) == size)
        stopping = asyncio.create_task(rig.server.stop(LONG_S))
        await eventually(lambda: len(peer.goaways) == 2 or stream.status is not None)
        peer.take(stream)
        assert await stream.ended() == (Status.OK, "")
        await stopping


async def test_new_connections_are_refused(rig: Rig) -> None:
    """Once stopping has begun nobody new gets in."""
    async with connect(rig.server.port) as peer:
        stream = peer.request(request_headers())
        await eventually(lambda: rig.notes.opened == 1)
        stopping = asyncio.create_task(rig.server.stop(LONG_S))
        await eventually(lambda: bool(peer.goaways))
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", rig.server.port)
        stream.send(END)
        assert await stream.ended() == (Status.OK, "")
        await stopping


async def test_the_grace_is_over(rig: Rig) -> None:
    """Who is still in its request phase then is told UNAVAILABLE, or is cut off."""
    async with connect(rig.server.port) as peer:
        stream = peer.request(request_headers())
        await eventually(lambda: rig.notes.opened == 1)
        await rig.server.stop(0.05)
        await rig.settled(1)
        await eventually(lambda: peer.closed)
        if rig.transport == "fast":
            assert stream.status == (Status.UNAVAILABLE, "the server stops")


async def test_a_peer_that_does_not_answer_does_not_hold_up_the_end(rig: Rig) -> None:
    """Neither one that reads nothing nor one that says nothing."""
    async with connect(rig.server.port, reads=False) as peer:
        stream = peer.request(request_headers(), request_body(bytes(1 << 20), end_of_stream=True))
        await eventually(lambda: bool(stream.body))
        peer.answers_pings = False
        await rig.server.stop(0.05)
        await rig.settled(1)
