"""Peers that are slow, many, gone or hostile, on raw HTTP/2: bounded memory, and nobody else is harmed."""

import asyncio
import contextlib
import gc
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import ngh2

from epp.server.limits import Limits
from epp.server.status import Status
from epp.testing.waiting import eventually
from tests.integration.server.h2_peer import connect, framed
from tests.integration.server.messages import bodies, request_body, request_headers, summary
from tests.integration.server.rig import FAST_ONLY, Rig

GET = request_headers(end_of_stream=True).SerializeToString()
MIB = 1 << 20


@contextlib.asynccontextmanager
async def server_with(rig: Rig, limits: Limits) -> AsyncIterator[int]:
    """Another server, with these limits; its port."""
    server = rig.new_server(0, None, limits=limits)
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop(0)


async def test_a_peer_that_does_not_read(rig: Rig) -> None:
    """Its own streams wait; another connection is served; once it reads, all arrives."""
    body = bytes(range(256)) * 8192
    chunks = [request_body(body[at : at + 62_000], end_of_stream=at + 62_000 >= len(body)) for at in range(0, len(body), 62_000)]
    async with connect(rig.server.port, reads=False) as slow, connect(rig.server.port) as other:
        stream = slow.request(request_headers(), *chunks, end=True)
        await eventually(lambda: len(stream.body) == 65535)
        for n in range(20):
            quick = other.request(request_headers(end_of_stream=True, case=f"q-{n}"), end=True)
            assert await quick.ended() == (Status.OK, "")
        assert len(stream.body) == 65535
        slow.reads = True
        slow.take(stream)
        assert await stream.ended() == (Status.OK, "")
        assert bodies(stream.replies()) == body


async def test_a_slow_stream_among_others(rig: Rig) -> None:
    """On one connection, a stream whose window is closed holds up no other."""
    async with connect(rig.server.port, window=1000) as peer:
        peer.h2.set_local_window_size(MIB)
        stuck = peer.request(request_headers(), request_body(bytes(100_000), end_of_stream=True))
        await eventually(lambda: bool(stuck.body))
        for n in range(20):
            quick = peer.request(request_headers(end_of_stream=True, case=f"q-{n}"), end=True)
            assert await quick.ended() == (Status.OK, "")


@FAST_ONLY  # grpc has limits of its own
async def test_many_slow_streams_on_one_connection(rig: Rig) -> None:
    """What is queued for a peer that takes nothing has a limit over all its streams; a stream that is read is not held up by it."""
    async with server_with(rig, Limits(connection_send_queue=200_000)) as port, connect(port, window=1000) as peer:
        peer.h2.set_local_window_size(MIB)
        chunks = [request_body(bytes(60_000), end_of_stream=n == 3) for n in range(4)]
        stuck = [peer.request(request_headers(case=f"s-{n}"), *chunks) for n in range(10)]
        await eventually(lambda: all(stream.body for stream in stuck))
        quick = peer.request(request_headers(case="quick"), request_body(bytes(500), end_of_stream=True), end=True)
        assert await quick.ended() == (Status.OK, "")
        assert [decision for decision, _, _ in rig.director.closed] == ["quick"]


@FAST_ONLY  # grpc has windows of its own
async def test_a_handler_that_does_not_read(rig: Rig) -> None:
    """While a pick lasts, the peer may send no more than a window."""
    async with server_with(rig, Limits(stream_window=100_000)) as port, connect(port) as peer:
        gate = asyncio.Event()
        route = rig.director.route

        async def script(*arguments: object) -> object:
            await gate.wait()
            return await route(*arguments)  # type: ignore[arg-type]

        rig.director.script = script  # type: ignore[assignment]
        stream = peer.request(request_headers(), request_body(b"{}", end_of_stream=True))
        await eventually(lambda: rig.director.picking == 1)
        stream.send(framed(request_body(bytes(5_000)).SerializeToString()) * 100)
        await eventually(lambda: peer.h2.queued_body_size(stream.id) > 0 and peer.h2.stream_remote_window_size(stream.id) == 0)
        assert peer.h2.queued_body_size(stream.id) >= 400_000
        gate.set()
        await eventually(lambda: peer.h2.queued_body_size(stream.id) == 0)


async def test_many_streams_on_many_connections(rig: Rig) -> None:
    """Thirty connections with fifty open streams each: every one gets its own answer."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connect(rig.server.port)) for _ in range(30)]
        streams = {
            f"d-{n}-{m}": peer.request(request_headers(case=f"d-{n}-{m}"), request_body(b"{"))
            for n, peer in enumerate(peers)
            for m in range(50)
        }
        for stream in streams.values():
            stream.send(framed(request_body(b"}", end_of_stream=True).SerializeToString()), end=True)
        for case, stream in streams.items():
            assert await stream.ended() == (Status.OK, "")
            assert stream.replies()[0].dynamic_metadata.fields["epp"].struct_value["decision"] == case
    await rig.settled(1500)
    assert len(rig.director.closed) == 1500


async def test_a_reset_storm(rig: Rig) -> None:
    """100,000 requests that are reset as soon as they are sent: memory stays flat, and a stream on another connection is served meanwhile."""
    async with connect(rig.server.port) as storm, connect(rig.server.port) as other:
        for round_ in range(100):
            if round_ == 20:
                before = _resident_bytes()
            for _ in range(1000):
                stream = storm.request(request_headers())
                storm.h2.reset_stream(stream.id, ngh2.ErrorCode.CANCEL)
                del storm.streams[stream.id]
            storm.flush()
            quick = other.request(request_headers(end_of_stream=True), end=True)
            assert await quick.ended() == (Status.OK, "")
            other.streams.clear()
        after = storm.request(request_headers(end_of_stream=True), end=True)
        assert await after.ended() == (Status.OK, "")
        gc.collect()
        # Both sides of it, and what the test's own peer leaves in the heap.
        assert _resident_bytes() - before < 16 * MIB
    await eventually(lambda: len(rig.notes.codes) == rig.notes.opened)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@FAST_ONLY  # grpc bounds resets in its own way
async def test_a_storm_of_streams_without_a_message(rig: Rig) -> None:
    """Who opens and resets streams that never say anything is asked to stop; its open streams go on to their end, and others never notice."""
    async with server_with(rig, Limits(silent_streams=500, silent_streams_per_s=0)) as port, connect(port) as storm, connect(port) as other:
        open_one = storm.request(request_headers())
        await eventually(lambda: rig.notes.opened == 1)
        for _ in range(501):
            storm.open().cancel()
        await eventually(lambda: bool(storm.goaways))
        [(code, _)] = storm.goaways
        assert code == ngh2.ErrorCode.ENHANCE_YOUR_CALM
        open_one.send(framed(request_body(b"{}", end_of_stream=True).SerializeToString()), end=True)
        assert await open_one.ended() == (Status.OK, "")
        await eventually(lambda: storm.closed)
        quick = other.request(request_headers(end_of_stream=True), end=True)
        assert await quick.ended() == (Status.OK, "")


async def test_streams_that_brought_a_message_are_no_storm(rig: Rig) -> None:
    """Envoy resets a stream per request: that never counts against it, nor do streams that end well."""
    async with server_with(rig, Limits(silent_streams=5, silent_streams_per_s=0)) as port, connect(port) as peer:
        for _ in range(50):
            stream = peer.request(request_headers(end_of_stream=True))
            await eventually(lambda stream=stream: summary(stream.replies()) == ["request_headers"])  # type: ignore[misc]
            stream.cancel()
            assert await peer.request(request_headers(end_of_stream=True), end=True).ended() == (Status.OK, "")
        assert peer.goaways == []


async def test_a_half_open_connection(rig: Rig) -> None:
    """A peer that gives no sign of life is given up with its streams; one that only answers pings is not."""
    async with (
        server_with(rig, Limits(keepalive_interval_s=0.1, keepalive_timeout_s=0.1)) as port,
        connect(port) as silent,
        connect(port) as idle,
    ):
        stream = silent.request(request_headers(end_of_stream=True))
        await eventually(lambda: summary(stream.replies()) == ["request_headers"])
        silent.answers_pings = False
        await eventually(lambda: silent.closed)
        await eventually(lambda: rig.director.closed == [("d-1", False, False)])
        assert await idle.request(request_headers(end_of_stream=True), end=True).ended() == (Status.OK, "")


async def test_pings_are_answered(rig: Rig) -> None:
    """However many."""
    async with connect(rig.server.port) as peer:
        for n in range(200):
            peer.h2.ping(n.to_bytes(8, "big"))
            peer.flush()
        assert await peer.request(request_headers(end_of_stream=True), end=True).ended() == (Status.OK, "")


@FAST_ONLY  # grpc refuses streams beyond a limit before it counts those as ended that have: there we set none
async def test_more_streams_than_allowed(rig: Rig) -> None:
    """The peer is told how many streams it may open, and opens the others as these end."""
    async with server_with(rig, Limits(max_streams=7)) as port, connect(port) as peer:
        await eventually(lambda: peer.h2.remote_settings[ngh2.Setting.MAX_CONCURRENT_STREAMS] == 7)
        streams = [peer.open() for _ in range(9)]
        for stream in streams:
            stream.send(framed(GET), end=True)
        for stream in streams:
            assert await stream.ended() == (Status.OK, "")
