"""Peers that send what they should not, on raw HTTP/2: the documented status, and nobody else is harmed."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from epp.domain import DecisionId
from epp.extproc.events import Route
from epp.server.limits import Limits
from epp.server.status import Status
from epp.testing.waiting import eventually
from tests.integration.server.h2_peer import Peer, connect, framed
from tests.integration.server.messages import request_body, request_headers, summary
from tests.integration.server.rig import FAST_ONLY, MAX_MESSAGE, Rig

GET = request_headers(end_of_stream=True).SerializeToString()


@pytest.fixture
async def peer(rig: Rig) -> AsyncIterator[Peer]:
    """A raw connection to the server."""
    async with connect(rig.server.port) as peer:
        yield peer


async def still_serves(peer: Peer) -> None:
    """Another stream of the same connection is served as if nothing had happened."""
    stream = peer.request(request_headers(end_of_stream=True, case="after"), end=True)
    assert await stream.ended() == (Status.OK, "")
    assert summary(stream.replies()) == ["request_headers"]


async def test_gzip(peer: Peer) -> None:
    """Compressed messages are understood, and uncompressed ones between them."""
    stream = peer.open(grpc_encoding="gzip")
    body = request_body(b"{}", end_of_stream=True).SerializeToString()
    stream.send(framed(request_headers().SerializeToString()) + framed(gzip.compress(body), flag=1), end=True)
    assert (await stream.ended())[0] == Status.OK
    assert summary(stream.replies()) == ["request_headers", "request_body 2|"]


async def test_a_gzip_bomb(peer: Peer) -> None:
    """What inflates beyond the limit ends the stream, and only that."""
    stream = peer.open(grpc_encoding="gzip")
    stream.send(framed(gzip.compress(bytes(MAX_MESSAGE + 1)), flag=1))
    assert (await stream.ended())[0] in (Status.RESOURCE_EXHAUSTED, Status.INTERNAL)
    await still_serves(peer)


@pytest.mark.parametrize("encoding", ["snappy", "deflate"])
async def test_other_encodings(rig: Rig, peer: Peer, encoding: str) -> None:
    """They are refused; the fast transport also says what may be used, which grpc does not always."""
    stream = peer.open(grpc_encoding=encoding)
    stream.send(framed(GET, flag=1), end=True)
    status, _ = await stream.ended()
    if rig.transport == "fast":
        assert status == Status.UNIMPLEMENTED
        assert stream.head["grpc-accept-encoding"] == "identity,gzip"
    assert status in (Status.UNIMPLEMENTED, Status.INTERNAL)
    await still_serves(peer)


async def test_an_oversized_message(rig: Rig, peer: Peer) -> None:
    """Its header is enough to refuse it, without waiting for its bytes; what came before it was answered."""
    stream = peer.request(request_headers(end_of_stream=True))
    await eventually(lambda: summary(stream.replies()) == ["request_headers"])
    stream.send(b"\0" + (MAX_MESSAGE + 1).to_bytes(4, "big"))
    assert (await stream.ended())[0] == Status.RESOURCE_EXHAUSTED
    await eventually(lambda: rig.director.closed == [("d-1", False, False)])
    await still_serves(peer)


async def test_the_largest_message(peer: Peer) -> None:
    """A message of exactly the limit passes."""
    message = request_body(bytes(MAX_MESSAGE - 12), end_of_stream=True)
    assert message.ByteSize() == MAX_MESSAGE
    stream = peer.request(request_headers(), message, end=True)
    assert await stream.ended() == (Status.OK, "")


@pytest.mark.parametrize("wire", [framed(GET)[:3], framed(GET)[:-1]], ids=["in the header", "in the message"])
async def test_a_truncated_message(rig: Rig, peer: Peer, wire: bytes) -> None:
    """What is not whole is no message: the stream is closed without a decision; the fast transport says why."""
    stream = peer.open()
    stream.send(wire, end=True)
    status, details = await stream.ended()
    if rig.transport == "fast":
        assert (status, details) == (Status.INTERNAL, f"the stream ended within a message: {len(wire)} bytes of it arrived")
    await eventually(lambda: stream.closed)
    assert rig.director.closed == []
    await still_serves(peer)


async def test_a_connection_lost_within_a_message(rig: Rig) -> None:
    """Nothing is left of its streams, and their decisions are closed."""
    async with connect(rig.server.port) as peer:
        routed = peer.request(request_headers(end_of_stream=True))
        await eventually(lambda: summary(routed.replies()) == ["request_headers"])
        peer.open().send(framed(GET)[:-1])
        peer.open()
    await eventually(lambda: rig.director.closed == [("d-1", False, False)])
    async with connect(rig.server.port) as peer:
        await still_serves(peer)


async def test_protobuf_garbage(peer: Peer) -> None:
    """The stream ends with a reason."""
    stream = peer.open()
    stream.send(framed(b"\xff\xff\xff"))
    status, details = await stream.ended()
    assert status == Status.INVALID_ARGUMENT
    assert "not a ProcessingRequest" in details
    await still_serves(peer)


async def test_unknown_methods(peer: Peer) -> None:
    """UNIMPLEMENTED, for other services, other methods and paths that are none."""
    for path in ("/other.Service/Call", "/envoy.service.ext_proc.v3.ExternalProcessor/process", "/", "/%F0%9F%98%80"):
        stream = peer.open(path)
        assert (await stream.ended())[0] == Status.UNIMPLEMENTED
    await still_serves(peer)


@pytest.mark.parametrize(
    ("method", "content_type", "status"), [("GET", "application/grpc", "405"), ("POST", "application/json", "415"), ("POST", "", "415")]
)
@FAST_ONLY  # grpc's own business
async def test_what_is_no_grpc(rig: Rig, peer: Peer, method: str, content_type: str, status: str) -> None:
    """The answer is HTTP's. (grpc is lenient about content types.)"""
    stream = peer.open(method=method, content_type=content_type)
    await eventually(lambda: stream.closed)
    assert stream.head[":status"] == status
    assert stream.reset == 0
    await still_serves(peer)


async def test_bytes_that_are_no_utf8(rig: Rig, peer: Peer) -> None:
    """They arrive as U+FFFD in headers of the request, and do no harm in headers of the call."""
    asked = []

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        asked.append(headers["x-odd"])
        return Route("10.0.0.1:8000", DecisionId("d-1"))

    rig.director.script = script
    message = request_headers(end_of_stream=True)
    message.request_headers.headers.headers.add(key="x-odd", raw_value=b"a\xff\xfeb")
    stream = peer.open()
    stream.send(framed(message.SerializeToString()), end=True)
    assert await stream.ended() == (Status.OK, "")
    assert asked == ["a\ufffd\ufffdb"]
    odd = peer.open(user_agent="\xff\xfe")
    odd.send(framed(message.SerializeToString()), end=True)
    await eventually(lambda: odd.closed)


async def test_200_kb_of_headers(rig: Rig, peer: Peer) -> None:
    """They are one large message."""
    message = request_headers(end_of_stream=True)
    for n in range(200):
        message.request_headers.headers.headers.add(key=f"x-{n}", raw_value=b"a" * 1000)
    stream = peer.request(message, end=True)
    assert await stream.ended() == (Status.OK, "")


async def test_deadlines(rig: Rig, peer: Peer) -> None:
    """A call whose time is up ends with DEADLINE_EXCEEDED, whatever it was waiting for; others go on."""
    cancelled = asyncio.Event()

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    rig.director.script = script
    picking = peer.open(grpc_timeout="50m")
    picking.send(framed(GET))
    await eventually(cancelled.is_set)
    await rig.settled(1)
    assert rig.notes.codes == ["DEADLINE_EXCEEDED"]
    silent = peer.open(grpc_timeout="1m")
    await eventually(lambda: picking.closed and silent.closed)
    if rig.transport == "fast":  # grpc resets the stream: the peer's own clock tells it why
        assert picking.status == silent.status == (Status.DEADLINE_EXCEEDED, "the deadline of the call has passed")
    rig.director.script = rig.director.route
    await still_serves(peer)


async def test_a_deadline_that_is_met(rig: Rig, peer: Peer) -> None:
    """It changes nothing."""
    stream = peer.open(grpc_timeout="1H")
    stream.send(framed(GET), end=True)
    assert await stream.ended() == (Status.OK, "")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: epp\r\n\r\n" * 3, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600)])
async def test_what_is_no_http2(rig: Rig, peer: Peer, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    """The connection is closed; said once where it is ours to say, with the reason."""
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        writer.write(data)
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
    await still_serves(peer)
    if rig.transport == "fast":
        [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert record.getMessage().startswith("connection from 127.0.0.1: ")
        assert ("see --secure-serving" in record.getMessage()) == (data[0] == 0x16)


async def test_headers_beyond_all_limits(rig: Rig, peer: Peer) -> None:
    """A call's own headers have a limit: the connection that goes beyond may be lost; the others are not."""
    async with connect(rig.server.port) as greedy:
        fine = greedy.open(**{f"x_{n}": "~" * 8000 for n in range(15)})
        fine.send(framed(GET), end=True)
        assert (await fine.ended())[0] == Status.OK
        stream = greedy.open(**{f"x_{n}": "~" * 8000 for n in range(40)})
        await eventually(lambda: stream.closed or greedy.closed or bool(stream.head))
    await still_serves(peer)


@FAST_ONLY  # grpc bounds memory in its own way
async def test_incomplete_messages_are_bounded(rig: Rig) -> None:
    """However many streams leave a message unfinished: the bytes kept for a connection have a limit."""
    server = rig.new_server(0, None, limits=Limits(partial_messages=1_000_000))
    await server.start()
    try:
        async with connect(server.port) as peer:
            streams = [peer.open() for _ in range(4)]
            for stream in streams:
                stream.send(framed(bytes(400_000))[:-1])
            await eventually(lambda: all(not peer.h2.queued_body_size(stream.id) for stream in streams))
            refused = [stream for stream in streams if stream.status is not None]
            assert 1 <= len(refused) <= 2
            for stream in refused:
                assert stream.status == (Status.RESOURCE_EXHAUSTED, "too many incomplete messages on this connection")
            for stream in streams:
                if stream not in refused:
                    stream.cancel()
            await eventually(lambda: all(stream.closed for stream in streams))
            whole = request_body(bytes(900_000), end_of_stream=True)
            stream = peer.request(request_headers(), whole, end=True)
            assert await stream.ended() == (Status.OK, "")
    finally:
        await server.stop(0)
