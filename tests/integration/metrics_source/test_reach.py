"""Who may get a request, by what polls of live servers and the data plane showed of who takes connections."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from epp.domain import Endpoint, EndpointId
from epp.sources.metrics import ScrapeSettings
from epp.testing.waiting import eventually
from tests.integration.metrics_source.rig import SELDOM, ModelServer, Rig, listening, running


async def test_a_server_that_died_is_no_choice_until_it_is_back() -> None:
    """Its process is gone, and the file still lists it; no request has to find that out."""
    server = ModelServer()
    async with listening(ModelServer()) as other, running(Rig(), other.endpoint("b")) as rig:
        async with listening(server):
            rig.sync([server.endpoint("a"), other.endpoint("b")])
            await eventually(lambda: rig.applied["default/a"] > 0)
            assert rig.choices() == ["default/a", "default/b"]
        await eventually(lambda: rig.choices() == ["default/b"])
        async with listening(server, server.port):
            await eventually(lambda: rig.choices() == ["default/a", "default/b"])


async def test_whom_the_data_plane_cannot_connect_to_is_no_choice() -> None:
    """Its word is taken at once, and looked into at once: nobody waits for polls that are an hour apart."""
    async with listening(ModelServer()) as up:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        down = Endpoint(EndpointId("default/a"), "127.0.0.1", port)
        async with running(Rig(SELDOM), up.endpoint("b"), down) as rig:
            await rig.doubted(down)
            assert rig.choices() == ["default/b"]
            await eventually(lambda: rig.notes.failures["default/a", "connect"] == 1)
            assert rig.choices() == ["default/b"]


async def test_whom_the_data_plane_cannot_connect_to_is_back_with_the_poll_that_is_answered() -> None:
    """One connection that failed among many takes a healthy endpoint out for as long as a poll takes; nobody else is asked or taken out."""
    async with (
        listening(ModelServer()) as a,
        listening(ModelServer()) as b,
        listening(ModelServer()) as c,
        running(Rig(SELDOM), a.endpoint("a"), b.endpoint("b"), c.endpoint("c")) as rig,
    ):
        rig.scraper.doubt("127.0.0.1:1")
        assert rig.choices() == ["default/a", "default/b", "default/c"]
        await rig.doubted(b.endpoint("b"))
        assert rig.choices() == ["default/a", "default/c"]
        await eventually(lambda: rig.choices() == ["default/a", "default/b", "default/c"])
        assert (b.asked, c.asked) == (1, 0)


async def test_the_data_plane_speaks_of_all_that_serve_at_a_port() -> None:
    """Of the ranks that share it, and of nobody who was there before."""
    async with listening(ModelServer()) as shared, listening(ModelServer()) as b:
        shared.silent = True
        ranks = [replace(shared.endpoint("a"), id=EndpointId(f"default/a-{rank}"), rank=rank) for rank in (0, 1)]
        async with running(Rig(SELDOM), *ranks, b.endpoint("b")) as rig:
            await rig.doubted(ranks[0])
            assert rig.choices() == ["default/b"]
            rig.sync([replace(ranks[0], port=b.port), ranks[1]])
            rig.scraper.doubt(ranks[0].host_port)
            assert rig.choices() == ["default/a-0"]


async def test_a_connection_from_before_is_no_proof_that_others_are_taken() -> None:
    """The port is closed while what was connected goes on: such answers do not contradict the data plane, a new connection does."""
    a = ModelServer()
    async with listening(a), listening(ModelServer()) as b, running(Rig(), a.endpoint("a"), b.endpoint("b")) as rig:
        await eventually(lambda: rig.applied["default/a"] > 0)
        async with AsyncExitStack() as later:
            await a.site.stop()
            asked = a.asked
            await eventually(lambda: a.asked > asked + 3)
            assert rig.choices() == ["default/a", "default/b"]
            rig.scraper.doubt(a.endpoint("a").host_port)
            await eventually(lambda: rig.notes.failures["default/a", "connect"] >= 2)
            assert rig.choices() == ["default/b"]
            await later.enter_async_context(listening(ModelServer(), a.port))
            await eventually(lambda: rig.choices() == ["default/a", "default/b"])


async def test_a_poll_from_before_is_no_proof_that_connections_are_taken() -> None:
    """It was under way when the data plane failed to connect, and says nothing of now."""
    async with listening(ModelServer()) as slow, listening(ModelServer()) as b, running(Rig(), b.endpoint("b")) as rig:
        slow.silent = True
        rig.sync([slow.endpoint("a"), b.endpoint("b")])
        await eventually(lambda: slow.asked == 1)
        rig.scraper.doubt(slow.endpoint("a").host_port)
        await slow.site.stop()
        slow.awake.set()
        await eventually(lambda: rig.notes.failures["default/a", "connect"] >= 1)
        assert rig.choices() == ["default/b"]
        assert rig.applied["default/a"] == 2, "the data plane's word and a page, nothing that contradicts it"


async def test_a_server_that_does_not_listen_yet_is_no_choice() -> None:
    """Listed while it loads its model."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with (
        listening(ModelServer()) as up,
        running(Rig(), Endpoint(EndpointId("default/a"), "127.0.0.1", port), up.endpoint("b")) as rig,
    ):
        await eventually(lambda: rig.choices() == ["default/b"])


@asynccontextmanager
async def accepting(port: int, says: bytes | None) -> AsyncIterator[None]:
    """Somebody who takes connections at a port, and says this and hangs up, or nothing at all."""
    kept: list[asyncio.StreamWriter] = []

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)
        if says is not None:
            writer.write(says)
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", port):
        try:
            yield
        finally:
            for writer in kept:
                writer.close()


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("http", b""),
        ("http", b"SSH-2.0-OpenSSH\r\n"),
        ("http", b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("http", None),
        ("https", b""),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("https", None),
    ],
)
async def test_who_takes_connections_is_a_choice_whatever_comes_of_them(
    scheme: str, says: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at first, then it hangs up, speaks nonsense or is slow for longer than silence is borne."""
    monkeypatch.setattr("epp.sources.reachability.SILENT_S", 0.0)
    monkeypatch.setattr("epp.sources.metrics.TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    endpoints = [Endpoint(EndpointId(f"default/{name}"), host, port) for name, host in (("a", "127.0.0.1"), ("b", "127.0.0.2"))]
    async with running(Rig(ScrapeSettings(scheme, interval_s=0.01)), *endpoints) as rig:
        await eventually(lambda: rig.pool.reachable == 0)
        async with accepting(port, says):
            await eventually(lambda: rig.choices() == ["default/a"])
            failed = rig.notes.failures.total()
            await eventually(lambda: rig.notes.failures.total() > failed + 3)
            assert rig.choices() == ["default/a"]
        await eventually(lambda: rig.pool.reachable == 0)


async def test_who_takes_no_connection_for_a_while_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing refuses it, and nothing takes it: packets are dropped, as in front of a host that has gone."""
    monkeypatch.setattr("epp.sources.reachability.SILENT_S", 0.3)
    monkeypatch.setattr("epp.sources.metrics.TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(8):
            each = waiting.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        silent = Endpoint(EndpointId("default/a"), "127.0.0.1", full.getsockname()[1])
        async with listening(ModelServer()) as up, running(Rig(), silent, up.endpoint("b")) as rig:
            await eventually(lambda: rig.notes.failures["default/a", "timeout"] == 1)
            assert rig.choices() == ["default/a", "default/b"]
            await eventually(lambda: rig.choices() == ["default/b"])


async def test_a_shortage_of_ours_takes_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is free for a connection: that says nothing of who listens."""

    async def no_file_is_free(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", no_file_is_free)
    async with listening(ModelServer()) as a, listening(ModelServer()) as b, running(Rig(), a.endpoint("a"), b.endpoint("b")) as rig:
        await eventually(lambda: min(rig.notes.failures[f"default/{name}", "connect"] for name in "ab") >= 3)
        assert (rig.pool.reachable, rig.applied.total()) == (2, 0)


async def test_metrics_at_another_port_say_nothing_of_who_serves() -> None:
    """A side car that is gone takes no endpoint along."""
    async with listening(ModelServer()) as server:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        settings = ScrapeSettings(interval_s=0.01, port=port)
        endpoints = [Endpoint(EndpointId(f"default/{name}"), host, server.port) for name, host in (("a", "127.0.0.1"), ("b", "127.0.0.2"))]
        async with listening(ModelServer(), port), running(Rig(settings), *endpoints) as rig:
            await eventually(lambda: rig.notes.failures["default/b", "connect"] >= 3 and rig.applied["default/a"] > 0)
            rig.scraper.doubt(f"127.0.0.1:{server.port}")
            assert rig.choices() == ["default/a", "default/b"]
