"""The same service over TLS."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from epp import names
from epp.reporter import Reporter
from epp.server.certificates import Certificates, TlsSettings
from epp.server.limits import Limits
from epp.server.status import Status
from epp.testing.waiting import eventually
from tests.integration.server.h2_peer import connect
from tests.integration.server.messages import bodies, request_body, request_headers
from tests.integration.server.rig import FAST_ONLY, EnvoyStream, Rig


@contextlib.asynccontextmanager
async def secure(rig: Rig, health_port: int | None = None, limits: Limits | None = None) -> AsyncIterator[tuple[int, int | None]]:
    """A server with a generated certificate; its ports."""
    certificates = Certificates(TlsSettings(), Reporter(), names=("localhost",), wall_clock=time.time)
    server = rig.new_server(0, health_port, tls=certificates, limits=limits)
    await server.start()
    try:
        yield server.port, server.health_port
    finally:
        await server.stop(0)


def client_context(*protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


async def test_a_large_body_over_tls(rig: Rig) -> None:
    """Comes and goes unchanged, chunk by chunk."""
    body = bytes(range(250)) * 4000
    chunks = [request_body(body[at : at + 50_000], end_of_stream=at == 950_000) for at in range(0, 1_000_000, 50_000)]
    async with secure(rig) as (port, _), connect(port, tls=client_context("h2")) as peer:
        stream = peer.request(request_headers(), *chunks, end=True)
        assert await stream.ended() == (Status.OK, "")
        assert bodies(stream.replies()) == body


async def test_health_stays_plaintext(rig: Rig) -> None:
    """Probes of the second port need no certificate."""
    async with secure(rig, 0) as (_, health_port), grpc.aio.insecure_channel(f"127.0.0.1:{health_port}") as channel:
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")


async def test_a_client_without_h2(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused, with a word in the log; the next one with h2 is served."""
    async with secure(rig) as (port, _):
        for protocols in ((), ("http/1.1",)):
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(*protocols))
                await asyncio.wait_for(reader.read(), 10)
                writer.close()
        if rig.transport == "fast":
            assert "does not offer h2" in caplog.text
        async with connect(port, tls=client_context("h2")) as peer:
            assert await peer.request(request_headers(end_of_stream=True), end=True).ended() == (Status.OK, "")


async def test_plaintext_to_the_secure_port(rig: Rig) -> None:
    """Fails; nobody else notices."""
    async with secure(rig) as (port, _):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = EnvoyStream(channel.stream_stream(f"/{names.EXT_PROC_SERVICE}/Process")())
            assert (await stream.status())[0] == "UNAVAILABLE"
        async with connect(port, tls=client_context("h2")) as peer:
            assert await peer.request(request_headers(end_of_stream=True), end=True).ended() == (Status.OK, "")
            await eventually(lambda: rig.notes.codes == ["OK"])


@FAST_ONLY
async def test_plaintext_to_the_secure_port_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever forgot TLS in Envoy's cluster finds the reason here, once; who shakes hands in time is not meant."""
    async with secure(rig, limits=Limits(handshake_s=0.05)) as (port, _), connect(port, tls=client_context("h2")) as peer:
        assert await peer.request(request_headers(end_of_stream=True), end=True).ended() == (Status.OK, "")
        await asyncio.wait_for(told_after_plaintext(port, caplog), 10)
    assert [record.levelname for record in caplog.records if "no TLS handshake" in record.message] == ["WARNING"]
    assert "--secure-serving=false" in caplog.text


async def told_after_plaintext(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """Speak HTTP/2 without TLS, until the log has it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    await eventually(lambda: "no TLS handshake" in caplog.text)
    assert await reader.read() == b""
    writer.close()
