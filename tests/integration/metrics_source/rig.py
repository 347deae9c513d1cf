"""A scraper, the pool it feeds, and model servers that say what a test wants."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from epp.datastore import EndpointReached, EndpointsListed, MetricsScraped, PoolState
from epp.domain import Endpoint, EndpointId
from epp.reporter import Reporter
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
        self.site: web.TCPSite
        """Where it takes connections; those there are go on when it is stopped."""

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
        server.site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True)
        await server.site.start()
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
