"""ext_proc over real gRPC on loopback: the sequences of spec/protocol.md 2.4, and streams that end in every other way."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

import pytest

from epp._proto import ext_proc_pb2 as pb
from epp.domain import DecisionId
from epp.errors import (
    BadRequestError,
    InternalError,
    PayloadTooLargeError,
    RequestError,
    ResourceExhaustedError,
    ServiceUnavailableError,
)
from epp.extproc.events import Route
from epp.testing.waiting import eventually
from tests.integration.server.messages import (
    REQUEST_TRAILERS,
    RESPONSE_TRAILERS,
    bodies,
    request_body,
    request_headers,
    response_body,
    response_headers,
    summary,
)
from tests.integration.server.rig import Rig

BIG = bytes(range(250)) * 800

SEQUENCES: Mapping[str, tuple[list[pb.ProcessingRequest], list[str]]] = {
    "S1 GET": (
        [request_headers(end_of_stream=True), response_headers(), response_body(b"ok", end_of_stream=True)],
        ["request_headers", "response_headers", "response_body 2|"],
    ),
    "S2 POST": (
        [request_headers(), request_body(b"{}", end_of_stream=True), response_headers(), response_body(b"", end_of_stream=True)],
        ["request_headers", "request_body 2|", "response_headers", "response_body 0|"],
    ),
    "S3 and S4 a body of 200,000 bytes": (
        [request_headers(), *(request_body(BIG[i : i + 50_000], end_of_stream=i == 150_000) for i in range(0, 200_000, 50_000))],
        ["request_headers", "request_body 62000", "request_body 62000", "request_body 62000", "request_body 14000|"],
    ),
    "S5 the end in an empty chunk": (
        [request_headers(), request_body(b"{}"), request_body(b"", end_of_stream=True)],
        ["request_headers", "request_body 2|"],
    ),
    "S6 SSE": (
        [
            request_headers(end_of_stream=True),
            response_headers(),
            response_body(b"data: 1\n\n"),
            response_body(b"data: 2\n\n"),
            response_body(b"", end_of_stream=True),
        ],
        ["request_headers", "response_headers", "response_body 9", "response_body 9", "response_body 0|"],
    ),
    "S14 the response is not sent to us": (
        [request_headers(), request_body(b"{}", end_of_stream=True)],
        ["request_headers", "request_body 2|"],
    ),
    "S15 the last chunk twice": (
        [request_headers(), request_body(b"{}", end_of_stream=True), request_body(b"{}", end_of_stream=True), response_headers()],
        ["request_headers", "request_body 2|", "response_headers"],
    ),
    "S16 request trailers": (
        [request_headers(), request_body(b"{}"), REQUEST_TRAILERS],
        ["request_headers", "request_body 2", "request_trailers"],
    ),
    "BUFFERED: the body's reply routes": (
        [
            request_headers(mode=pb.BUFFERED, response_mode=pb.NONE),
            request_body(b"{}", end_of_stream=True),
            response_headers(),
        ],
        ["request_headers", "request_body 0", "response_headers"],
    ),
    "STREAMED: the headers' reply routes, and every message gets an empty one": (
        [
            request_headers(mode=pb.STREAMED, response_mode=pb.STREAMED),
            request_body(b"{"),
            request_body(b"}", end_of_stream=True),
            response_headers(),
            response_body(b"data: 1", end_of_stream=True),
        ],
        ["request_headers", "request_body 0", "request_body 0", "response_headers", "response_body 0"],
    ),
    "NONE: only headers come": (
        [request_headers(mode=pb.NONE, response_mode=pb.NONE), response_headers(), RESPONSE_TRAILERS],
        ["request_headers", "response_headers", "response_trailers"],
    ),
    "S17 an answer without a body": (
        [request_headers(end_of_stream=True), response_headers(end_of_stream=True)],
        ["request_headers", "response_headers"],
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
async def test_sequences(rig: Rig, name: str) -> None:
    """Envoy's messages get the documented replies, the body comes back unchanged, and the stream ends with OK."""
    messages, replies = SEQUENCES[name]
    requests = [message for message in messages if message.WhichOneof("request").startswith("request")]
    stream = rig.open()
    await stream.send(*requests)
    received = await stream.receive(sum(reply.startswith("request") for reply in replies))  # a model server answers what it was sent
    await stream.send(*messages[len(requests) :])
    received += await stream.finish()
    assert summary(received) == replies
    sent = [m.request_body.body for m in messages]
    duplex = messages[0].protocol_config.request_body_mode == pb.FULL_DUPLEX_STREAMED
    assert bodies(received) == (b"" if not duplex else sent[1] if "twice" in name else b"".join(sent))
    assert await stream.status() == ("OK", "")
    await rig.settled(1)
    seen = any(m.HasField("response_headers") for m in messages)
    complete = any(m.response_body.end_of_stream or m.response_headers.end_of_stream or m.HasField("response_trailers") for m in messages)
    assert rig.director.closed == [("d-1", seen, complete)]
    assert rig.notes.codes == ["OK"]


async def test_what_the_director_is_asked(rig: Rig) -> None:
    """Headers, subset hint and the whole body arrive at the director, and its choice in Envoy as header and metadata."""
    asked = []

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        asked.append((headers, subset, body))
        return Route("[fd00::1]:8000", DecisionId("d-9"), set_headers=(("x-request-id", "r-9"),))

    rig.director.script = script
    headers = request_headers()
    headers.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({"x-gateway-destination-endpoint-subset": ["[fd00::1]:8000"]})
    stream = rig.open()
    await stream.send(headers, request_body(b'{"a"'), request_body(b": 1}", end_of_stream=True))
    [reply, _] = await stream.finish()
    assert asked == [({":path": "/v1/completions", "x-case": "d-1"}, ("[fd00::1]:8000",), b'{"a": 1}')]
    assert {o.header.key: o.header.raw_value for o in reply.request_headers.response.header_mutation.set_headers} == {
        "x-gateway-destination-endpoint": b"[fd00::1]:8000",
        "Content-Length": b"8",
        "x-request-id": b"r-9",
    }
    assert reply.dynamic_metadata.fields["envoy.lb"].struct_value["x-gateway-destination-endpoint"] == "[fd00::1]:8000"
    assert reply.dynamic_metadata.fields["epp"].struct_value["decision"] == "d-9"


@pytest.mark.parametrize(
    "error",
    [
        BadRequestError("model not found in request body"),
        ResourceExhaustedError("full", dropped_reason="rejected-saturated"),
        InternalError("no pods available in datastore"),
        ServiceUnavailableError("none", dropped_reason="rejected-no-endpoints"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("header_only", [False, True])
async def test_rejected_requests(rig: Rig, error: RequestError, *, header_only: bool) -> None:
    """S10, S11: an error of the director becomes one immediate response, and the stream ends with OK."""

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        raise error

    rig.director.script = script
    stream = rig.open()
    await stream.send(
        *([request_headers(end_of_stream=True)] if header_only else [request_headers(), request_body(b"{", end_of_stream=True)])
    )
    [reply] = await stream.receive(9)  # without a half-close: the server ends the stream
    assert reply.immediate_response.status.code == error.http_status
    assert reply.immediate_response.body.decode() == f"inference error: {error.code} - {error.message}"
    assert await stream.status() == ("OK", "")
    await rig.settled(1)
    assert rig.director.closed == []
    assert rig.notes.rejections == []  # the director reports its own


async def test_a_body_over_the_limit(rig: Rig) -> None:
    """413 arrives although the body has not ended, and the reporter is told."""
    stream = rig.open()
    await stream.send(request_headers(), *[request_body(bytes(1_000_000))] * 12)
    assert summary(await stream.receive(9)) == ["immediate 413"]
    assert await stream.status() == ("OK", "")
    [(request, error)] = rig.notes.rejections
    assert request is None
    assert isinstance(error, PayloadTooLargeError)


async def test_bodies_that_never_end(rig: Rig) -> None:
    """Together they take no more than a bound: who goes beyond gets 429, and it is given back when their clients leave."""
    rig.service.room.limit = 5_500_000
    stays, comes_late = rig.open(), rig.open()
    await stays.send(request_headers(), *[request_body(bytes(1_000_000))] * 4)
    await eventually(lambda: rig.service.room.taken == 4_000_000)
    await comes_late.send(request_headers(), *[request_body(bytes(1_000_000))] * 2)
    assert summary(await comes_late.receive(9)) == ["immediate 429"]
    await still_serves(rig)
    stays.call.cancel()
    await eventually(lambda: rig.service.room.taken == 0)


async def test_concurrent_streams_do_not_mix(rig: Rig) -> None:
    """Interleaved streams on one connection each get their own body and decision back."""

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        await asyncio.sleep(0)
        assert body is not None
        return Route(f"10.0.0.1:{len(body)}", DecisionId(headers["x-case"]))

    rig.director.script = script
    streams = [(rig.open(), bytes([n]) * (n * 40_000 + 1)) for n in range(8)]
    for n, (stream, _) in enumerate(streams):
        await stream.send(request_headers(case=f"d-{n}"))
    for last in (False, True):
        for stream, body in streams:
            half = len(body) // 2
            await stream.send(request_body(body[half:] if last else body[:half], end_of_stream=last))
    for n, (stream, body) in enumerate(streams):
        headers, *rest = await stream.finish()
        assert headers.dynamic_metadata.fields["epp"].struct_value["decision"] == f"d-{n}"
        assert headers.dynamic_metadata.fields["envoy.lb"].struct_value["x-gateway-destination-endpoint"] == f"10.0.0.1:{len(body)}"
        assert bodies(rest) == body
    await rig.settled(8)
    assert sorted(decision for decision, _, _ in rig.director.closed) == [f"d-{n}" for n in range(8)]


CANCEL_POINTS: Mapping[str, tuple[list[pb.ProcessingRequest], int, list[tuple[str, bool, bool]]]] = {
    "after the headers": ([request_headers()], 0, []),
    "in the body": ([request_headers(), request_body(b"{")], 0, []),
    "after the request": ([request_headers(), request_body(b"{}", end_of_stream=True)], 2, [("d-1", False, False)]),
    "after the response headers": ([request_headers(end_of_stream=True), response_headers()], 2, [("d-1", True, False)]),
    "in the answer": ([request_headers(end_of_stream=True), response_headers(), response_body(b"x")], 3, [("d-1", True, False)]),
    "after the answer": ([request_headers(end_of_stream=True), response_headers(end_of_stream=True)], 2, [("d-1", True, True)]),
}


@pytest.mark.parametrize("point", CANCEL_POINTS)
async def test_a_reset_stream(rig: Rig, point: str) -> None:
    """S12: wherever Envoy resets the stream, the director hears of the end once for a decision, else not at all."""
    messages, replies, closed = CANCEL_POINTS[point]
    stream = rig.open()
    await stream.send(*messages)
    assert len(await stream.receive(replies)) == replies
    await eventually(lambda: rig.notes.opened == 1)
    stream.call.cancel()
    await rig.settled(1)
    assert rig.director.closed == closed
    await still_serves(rig)


async def still_serves(rig: Rig) -> None:
    """Another stream is served as if nothing had happened."""
    stream = rig.open()
    await stream.send(request_headers(end_of_stream=True, case="after"))
    assert summary(await stream.finish()) == ["request_headers"]


async def test_a_reset_while_picking(rig: Rig) -> None:
    """The pick is cancelled with the stream, and no decision is booked."""
    cancelled = asyncio.Event()

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    rig.director.script = script
    stream = rig.open()
    await stream.send(request_headers(), request_body(b"{}", end_of_stream=True))
    await eventually(lambda: rig.director.picking == 1)
    stream.call.cancel()
    await eventually(cancelled.is_set)
    await rig.settled(1)
    assert rig.notes.codes == ["CANCELLED"]
    assert rig.director.closed == []


async def test_a_reset_while_the_body_is_sent_back(rig: Rig) -> None:
    """A peer that does not read blocks its own stream only; its reset frees the stream, and the decision is closed."""
    stream = rig.open()
    chunk = bytes(1_000_000)
    await stream.send(request_headers(), *[request_body(chunk)] * 9, request_body(chunk, end_of_stream=True))
    assert summary(await stream.receive(2)) == ["request_headers", "request_body 62000"]
    assert rig.director.closed == []
    await still_serves(rig)
    stream.call.cancel()
    await rig.settled(2)
    assert sorted(rig.director.closed) == [("after", False, False), ("d-1", False, False)]


async def test_a_crash_ends_the_stream_with_internal(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A bug is logged with the number of the stream and told to Envoy, which never waits for an answer that cannot come."""

    async def script(headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        raise ZeroDivisionError

    rig.director.script = script
    stream = rig.open()
    await stream.send(request_headers(end_of_stream=True))
    assert await stream.receive(1) == []
    assert await stream.status() == ("INTERNAL", "a bug in epp, see its log: ext_proc stream 1 failed")
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "ext_proc stream 1 failed" in record.getMessage()
    assert record.exc_info is not None
    assert rig.notes.codes == ["INTERNAL"]
    rig.director.script = rig.director.route
    await still_serves(rig)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff", "not a ProcessingRequest"),
        (b"", "of a kind unknown to this version"),
        (response_body(b"x").SerializeToString(), "ResponseBody is not expected in state EXPECT_REQUEST_HEADERS"),
        (
            pb.ProcessingRequest(request_headers=pb.HttpHeaders(), protocol_config={"request_body_mode": pb.GRPC}).SerializeToString(),
            "request_body_mode is GRPC, which epp does not speak: set it to",
        ),
    ],
)
async def test_protocol_errors(rig: Rig, caplog: pytest.LogCaptureFixture, data: bytes, reason: str) -> None:
    """A peer that breaks the protocol is told what is wrong; one that keeps doing so is logged once."""
    for _ in range(3):
        stream = rig.open()
        await stream.call.write(data)
        code, details = await stream.status()
        assert code == "INVALID_ARGUMENT"
        assert reason in details
    await rig.settled(3)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert reason in record.getMessage()
    assert record.exc_info is None


async def test_stopping_ends_open_streams(rig: Rig) -> None:
    """After the grace no stream is left, and their decisions are closed."""
    stream = rig.open()
    await stream.send(request_headers(end_of_stream=True), response_headers())
    assert len(await stream.receive(2)) == 2
    await rig.server.stop(0.05)
    await rig.settled(1)
    assert rig.director.closed == [("d-1", True, False)]
