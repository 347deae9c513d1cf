"""Scraping live servers: good pages, garbage, errors, silence, and servers that come and go."""

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from epp import names
from epp.datastore import EndpointReached, EndpointsListed, MetricsScraped, PoolState
from epp.domain import Endpoint, EndpointId
from epp.errors import ConfigError
from epp.reporter import Reporter
from epp.sources.engine_metrics import ENGINES, VLLM, EngineMetrics
from epp.sources.metrics import Extraction, MetricsScraper, ScrapeSettings
from epp.testing.waiting import eventually

DATA = Path(__file__).parents[2] / "data"
REAL_PAGE = (DATA / "vllm-0.32.0" / "requests" / "metrics.txt").read_bytes()
TLS = DATA / "tls"
FAST = ScrapeSettings(interval_s=0.01)
SELDOM = ScrapeSettings(interval_s=3600.0)


def page(waiting: int) -> str:
    return REAL_PAGE.decode().replace(
        'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0', f'vllm:num_requests_waiting{{engine="0"}} {waiting}'
    )


class ModelServer:
    """Answers GET /metrics with whatever `answer` is at that moment."""

    def __init__(self) -> None:
        self.answer: Callable[[], web.StreamResponse] = lambda: web.Response(text=page(0))
        self.silent = False
        self.asked = 0
        self.awake = asyncio.Event()
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.silent:
            await self.awake.wait()
        return self.answer()

    def says(self, waiting: int) -> None:
        """A full page of vLLM with so many requests in the queue."""
        self.answer = lambda: web.Response(text=page(waiting))

    def endpoint(self, name: str = "a", **labels: str) -> Endpoint:
        return Endpoint(EndpointId(f"default/{name}"), "127.0.0.1", self.port, labels)


@asynccontextmanager
async def listening(server: ModelServer, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[ModelServer]:
    """The server on a port, until the end of the block."""
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True).start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        server.awake.set()
        await runner.cleanup()


class Notes(Reporter):
    """Writes down what goes wrong, and when it ends."""

    def __init__(self) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()
        self.missing: set[tuple[str, str]] = set()
        self.recovered: Counter[str] = Counter()

    def scrape_failed(self, endpoint: EndpointId, reason: str) -> None:
        self.failures[endpoint, reason] += 1

    def scrape_recovered(self, endpoint: EndpointId) -> None:
        self.recovered[endpoint] += 1

    def metric_missing(self, endpoint: EndpointId, metric: str) -> None:
        self.missing.add((endpoint, metric))


class Rig:
    """A scraper that feeds a pool."""

    def __init__(self, settings: ScrapeSettings = FAST, extraction: Extraction | None = None) -> None:
        self.pool = PoolState()
        self.notes = Notes()
        self.scraper = MetricsScraper(self.apply, self.notes, now=time.monotonic, settings=settings, extraction=extraction)
        self.applied: Counter[str] = Counter()

    def apply(self, event: MetricsScraped | EndpointReached) -> None:
        self.applied[event.endpoint] += 1
        self.pool.apply(event)

    def sync(self, endpoints: Sequence[Endpoint]) -> None:
        self.pool.apply(EndpointsListed(endpoints))
        self.scraper.sync(endpoints)

    async def doubted(self, endpoint: Endpoint) -> None:
        """The data plane got no connection to it, and the scraper, which may have just begun, has taken that in."""

        def taken_in() -> bool:
            self.scraper.doubt(endpoint.host_port)
            return endpoint.id not in self.choices()

        await eventually(taken_in)

    def choices(self) -> list[str]:
        """Who may get a request."""
        return [endpoint.id for endpoint in self.pool.snapshot().endpoints]

    def waiting(self) -> list[int]:
        return [endpoint.metrics.waiting for endpoint in self.pool.snapshot().endpoints]


@asynccontextmanager
async def running(rig: Rig, *endpoints: Endpoint) -> AsyncIterator[Rig]:
    """The scraper at work on these endpoints, until the end of the block."""
    rig.sync(endpoints)
    task = asyncio.create_task(rig.scraper.run())
    try:
        yield rig
    finally:
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError)


async def test_the_pool_follows_what_the_servers_say() -> None:
    """Two servers with vLLM's real page; every change of their load arrives."""
    async with listening(ModelServer()) as a, listening(ModelServer()) as b, running(Rig(), a.endpoint("a"), b.endpoint("b")) as rig:
        a.says(3)
        b.says(4)
        await eventually(lambda: rig.waiting() == [3, 4])
        a.says(5)
        await eventually(lambda: rig.waiting() == [5, 4])
        metrics = rig.pool.snapshot().endpoints[0].metrics
        assert (metrics.block_size, metrics.num_blocks, metrics.max_loras) == (32, 32768, 1)
        assert metrics.updated_at is not None
        assert not rig.notes.failures
        assert not rig.notes.missing


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: web.Response(text="<html>hello</html>"), "parse"),
        (lambda: web.Response(text="# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting many\n"), "parse"),
        (lambda: web.Response(body=b"#" * ((8 << 20) + 1)), "parse"),
        (lambda: web.Response(status=500, text=page(9)), "status"),
        (lambda: web.Response(status=302, headers={"Location": "/metrics"}), "status"),
        (lambda: web.Response(headers={"Content-Encoding": "gzip"}, body=b"not gzip"), "connect"),
    ],
)
async def test_a_bad_answer_is_reported_and_the_last_metrics_stay(answer: Callable[[], web.StreamResponse], reason: str) -> None:
    """Each time it fails, and once when it is good again; a neighbour does not notice."""
    async with (
        listening(ModelServer()) as bad,
        listening(ModelServer()) as good,
        running(Rig(), bad.endpoint("a"), good.endpoint("b")) as rig,
    ):
        bad.says(3)
        await eventually(lambda: rig.waiting()[0] == 3)
        bad.answer = answer
        await eventually(lambda: rig.notes.failures["default/a", reason] >= 1)
        last = rig.pool.snapshot().endpoints[0].metrics
        await eventually(lambda: rig.notes.failures["default/a", reason] >= 3)
        good.says(7)
        await eventually(lambda: rig.waiting() == [3, 7])
        assert rig.pool.snapshot().endpoints[0].metrics is last
        assert set(rig.notes.failures) == {("default/a", reason)}
        bad.says(4)
        await eventually(lambda: rig.waiting() == [4, 7])
        assert rig.notes.recovered == {"default/a": 1}


async def test_a_server_that_is_down_comes_back() -> None:
    """Nobody listens: reported; then somebody does."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    down = Endpoint(EndpointId("default/a"), "127.0.0.1", port)
    async with running(Rig(), down) as rig:
        await eventually(lambda: rig.notes.failures["default/a", "connect"] >= 2)
        server = ModelServer()
        server.says(6)
        async with listening(server, port):
            await eventually(lambda: rig.waiting() == [6])
        await eventually(lambda: rig.notes.recovered == {"default/a": 1} and rig.notes.failures["default/a", "connect"] >= 3)


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
        async with running(Rig(SELDOM), down, up.endpoint("b")) as rig:
            await rig.doubted(down)
            assert rig.choices() == ["default/b"]
            await eventually(lambda: rig.notes.failures["default/a", "connect"] == 1)
            assert rig.choices() == ["default/b"]


async def test_whom_the_data_plane_cannot_connect_to_is_back_with_the_poll_that_is_answered() -> None:
    """One connection that failed among many takes a healthy endpoint out for as long as a poll takes; nobody else is asked or taken out."""
    async with (
        listening(ModelServer()) as a,
        listening(ModelServer()) as b,
        running(Rig(SELDOM), a.endpoint("a"), b.endpoint("b")) as rig,
    ):
        rig.scraper.doubt("127.0.0.1:1")
        assert rig.choices() == ["default/a", "default/b"]
        await rig.doubted(a.endpoint("a"))
        assert rig.choices() == ["default/b"]
        await eventually(lambda: rig.choices() == ["default/a", "default/b"])
        assert (a.asked, b.asked) == (1, 0)


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


async def test_a_silent_server_times_out_and_only_one_request_waits() -> None:
    """It accepts and says nothing: at most one request is open to it."""
    async with listening(ModelServer()) as silent, running(Rig(), silent.endpoint()) as rig:
        await eventually(lambda: rig.applied["default/a"] > 0)
        asked, silent.silent = silent.asked, True
        await eventually(lambda: rig.notes.failures["default/a", "timeout"] == 1)
        assert silent.asked <= asked + 3
        silent.silent = False
        silent.says(2)
        await eventually(lambda: rig.waiting() == [2])


async def test_an_endpoint_that_leaves_is_left_alone() -> None:
    """And one that comes, or moves to another port, is scraped at once."""
    async with listening(ModelServer()) as a, listening(ModelServer()) as b, running(Rig(), a.endpoint("a")) as rig:
        await eventually(lambda: a.asked > 2)
        b.says(8)
        rig.sync([b.endpoint("a")])
        await eventually(lambda: rig.waiting() == [8])
        asked = a.asked
        await eventually(lambda: b.asked > 10)
        assert a.asked == asked
        rig.sync([])
        rig.sync([a.endpoint("b"), b.endpoint("a")])
        await eventually(lambda: a.asked > asked and rig.waiting() == [0, 8])


async def test_each_endpoint_is_read_in_the_words_of_its_engine() -> None:
    """By label, current or legacy; an unknown engine is read as the default one, and what it lacks is named."""
    sglang = "# TYPE sglang:num_queue_reqs gauge\nsglang:num_queue_reqs 5\n"
    async with (
        listening(ModelServer()) as server,
        running(
            Rig(),
            server.endpoint("new", **{names.ENGINE_TYPE_LABEL: "sglang"}),
            server.endpoint("old", **{names.LEGACY_ENGINE_TYPE_LABEL: "sglang"}),
            server.endpoint("other", **{names.ENGINE_TYPE_LABEL: "unheard-of"}),
        ) as rig,
    ):
        server.answer = lambda: web.Response(text=sglang)
        await eventually(lambda: rig.waiting() == [5, 5, 0])
        await eventually(lambda: ("default/other", VLLM.queued) in rig.notes.missing)
        assert ("default/new", "sglang:token_usage") in rig.notes.missing


async def test_port_and_path_may_be_others() -> None:
    """A side car exports the metrics."""
    server, paths = ModelServer(), set[str]()

    async def handle(request: web.Request) -> web.StreamResponse:
        paths.add(request.path)
        return web.Response(text=page(1))

    server.handle = handle  # type: ignore[method-assign]  # the one test that looks at the request
    async with listening(server):
        settings = ScrapeSettings(interval_s=0.01, port=server.port, path="/side/metrics")
        async with running(Rig(settings), Endpoint(EndpointId("default/a"), "127.0.0.1", 1)) as rig:
            await eventually(lambda: rig.waiting() == [1])
    assert paths == {"/side/metrics"}


@pytest.mark.parametrize(
    ("settings", "trusted"),
    [
        (ScrapeSettings("https", interval_s=0.01), True),
        (ScrapeSettings("https", interval_s=0.01, verify_tls=True, ca_cert_path=str(TLS / "cert.pem")), True),
        (ScrapeSettings("https", interval_s=0.01, verify_tls=True), False),
    ],
)
async def test_https(settings: ScrapeSettings, *, trusted: bool) -> None:
    """A pod's own certificate is accepted, unless verification is asked for and the CA is not known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    server = ModelServer()
    server.says(4)
    async with listening(server, tls=context), running(Rig(settings), server.endpoint()) as rig:
        if trusted:
            await eventually(lambda: rig.waiting() == [4])
        else:
            await eventually(lambda: rig.notes.failures["default/a", "connect"] >= 2)
            assert rig.waiting() == [0]


@pytest.mark.parametrize(
    ("settings", "extraction", "says"),
    [
        (ScrapeSettings("ftp"), Extraction(), "scheme: 'ftp'"),
        (ScrapeSettings("https", ca_cert_path="/missing.pem"), Extraction(), "cannot use /missing.pem"),
        (ScrapeSettings(), Extraction(default_engine="vlm"), "defaultEngine: 'vlm' is no known engine; known are vllm, sglang"),
        (ScrapeSettings(), Extraction({**ENGINES, "x": EngineMetrics("a{", "b")}), "metric spec 'a{'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(settings: ScrapeSettings, extraction: Extraction, says: str) -> None:
    """With the parameter, its value and what would be right."""
    with pytest.raises(ConfigError) as caught:
        Rig(settings, extraction)
    assert says in str(caught.value)


async def test_a_defect_of_ours_does_not_end_the_scraping(caplog: pytest.LogCaptureFixture) -> None:
    """One endpoint's metrics cannot be applied: it is logged with the place, and goes on for all."""

    class Poisoned(Rig):
        def apply(self, event: MetricsScraped | EndpointReached) -> None:
            if event.endpoint == "default/a":
                raise ZeroDivisionError
            super().apply(event)

    server = ModelServer()
    server.says(2)
    async with listening(server), running(Poisoned(), server.endpoint("a"), server.endpoint("b")) as rig:
        await eventually(lambda: rig.waiting() == [0, 2] and rig.notes.failures["default/a", "internal"] >= 2)
    assert [record.exc_info is not None for record in caplog.records] == [True]
