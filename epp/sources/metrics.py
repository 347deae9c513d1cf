"""Reads /metrics of every endpoint, 20 times a second by default, and pushes what it says, and who takes no connections, into the pool state.

One task an endpoint inside one TaskGroup, over shared HTTP sessions; at most one request to an endpoint is open.
Runs on the event loop; `sync` is level-based and may be called at any time, also before `run`. What a page means is
decided in epp.sources.engine_metrics. `doubt` tells of an endpoint that the data plane got no connection to.

Failure policy: report, keep the metrics there are, try again after a delay that doubles up to a second. How old metrics are is told by
`EndpointMetrics.updated_at`; who reads them decides what is stale.

Costs, one core, vLLM's 67 KB page over HTTP: about 0.2 ms CPU a scrape, three quarters of it aiohttp.
"""

import asyncio
import itertools
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from epp import names
from epp.datastore import EndpointReached, MetricsScraped
from epp.domain import NEVER_SCRAPED, Endpoint, EndpointId, EndpointMetrics
from epp.errors import ConfigError
from epp.reporter import Reporter
from epp.sources.engine_metrics import ENGINES, EngineMetrics, PageError, PageReader
from epp.sources.poll_sign import sign_of
from epp.sources.reachability import Reachability, Sign

logger = logging.getLogger(__name__)

# Limit of one poll (spec/plugins.md 12).
TIMEOUT_S = 1.0
MAX_BACKOFF_S = 1.0

# Over a hundred times vLLM's page; llm-d's own cap where it has one (spec/plugins.md 12.1).
MAX_PAGE_BYTES = 8 << 20

HEADERS = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class ScrapeSettings:
    """Where and how to ask (metrics-data-source, spec/plugins.md 12.1)."""

    scheme: str = "http"
    path: str = "/metrics"
    port: int | None = None
    """Instead of the endpoint's own port."""
    interval_s: float = 0.05
    verify_tls: bool = False
    ca_cert_path: str | None = None
    client_cert_path: str | None = None
    client_key_path: str | None = None


@dataclass(frozen=True, slots=True)
class Extraction:
    """Which engine's names apply to which endpoint (core-metrics-extractor, spec/plugins.md 12.2)."""

    engines: Mapping[str, EngineMetrics] = field(default_factory=lambda: ENGINES)
    default_engine: str = "vllm"
    """For endpoints without the label or with an engine that is not in the table."""
    engine_label_key: str = names.ENGINE_TYPE_LABEL
    """The legacy label is consulted too."""


class MetricsScraper:
    """Keeps one poller per endpoint."""

    def __init__(
        self,
        apply: Callable[[MetricsScraped | EndpointReached], object],
        reporter: Reporter,
        *,
        now: Callable[[], float],
        settings: ScrapeSettings | None = None,
        extraction: Extraction | None = None,
    ) -> None:
        """`now` gives monotonic seconds. Raises ConfigError for unusable settings, specs or TLS files."""
        self._apply = apply
        self._reporter = reporter
        self._now = now
        self._settings = settings or ScrapeSettings()
        self._extraction = extraction or Extraction()
        if self._extraction.default_engine not in self._extraction.engines:
            known = ", ".join(self._extraction.engines)
            raise ConfigError(f"defaultEngine: {self._extraction.default_engine!r} is no known engine; known are {known}")
        self._readers = {engine: PageReader(metrics) for engine, metrics in self._extraction.engines.items()}
        self._ssl = tls_context(self._settings)
        self._wanted: dict[EndpointId, _Target] = {}
        self._pollers: dict[EndpointId, _Poller] = {}
        self._serving: dict[str, list[_Poller]] = {}
        """Those that poll where requests go, by that "ip:port"; ranks may share one."""
        self._numbers = itertools.count()
        self._start: Callable[[_Poller], asyncio.Task[None]] | None = None

    def sync(self, endpoints: Sequence[Endpoint]) -> None:
        """Scrape exactly these endpoints from now on."""
        self._wanted = {endpoint.id: self._target(endpoint) for endpoint in endpoints}
        self._converge()

    def doubt(self, host_port: str) -> None:
        """The data plane got no connection to it: it takes none until a poll, which comes at once, shows that it does.

        Nothing where polls go elsewhere, which could never show it.
        """
        for poller in self._serving.get(host_port, ()):
            if poller.reach.doubt(self._now()):
                self._apply(EndpointReached(poller.target.id, reachable=False))
                poller.hurry()

    async def run(self) -> None:
        """Scrape until cancelled."""
        async with (
            _session(aiohttp.TCPConnector(limit=0, ssl=self._ssl)) as keeping,
            _session(aiohttp.TCPConnector(limit=0, ssl=self._ssl, force_close=True)) as connecting,
            asyncio.TaskGroup() as group,
        ):
            sessions = _Sessions(keeping, connecting)
            self._start = lambda poller: group.create_task(self._poll(sessions, poller), name=f"scrape {poller.target.id}")
            try:
                self._converge()
                await asyncio.Event().wait()
            finally:
                self._start = None
                self._pollers.clear()
                self._serving.clear()

    def _converge(self) -> None:
        """Make the running pollers equal to the wanted ones."""
        if self._start is None:
            return
        for key, poller in list(self._pollers.items()):
            if self._wanted.get(key) != poller.target:
                assert poller.task is not None
                poller.task.cancel()
                del self._pollers[key]
        for key, target in self._wanted.items():
            if key not in self._pollers:
                # Spread over the interval, in an order that has no pattern (golden ratio): all at once would make requests wait.
                poller = self._pollers[key] = _Poller(target, next(self._numbers) * 0.618 % 1)
                poller.task = self._start(poller)
        self._serving.clear()
        for poller in self._pollers.values():
            if poller.target.serves:
                self._serving.setdefault(poller.target.host_port, []).append(poller)

    def _target(self, endpoint: Endpoint) -> "_Target":
        labels, extraction = endpoint.labels, self._extraction
        engine = labels.get(extraction.engine_label_key) or labels.get(names.LEGACY_ENGINE_TYPE_LABEL) or extraction.default_engine
        at = Endpoint(endpoint.id, endpoint.address, self._settings.port or endpoint.port)
        url = f"{self._settings.scheme}://{at.host_port}/{self._settings.path.removeprefix('/')}"
        known = engine if engine in self._readers else extraction.default_engine
        return _Target(endpoint.id, url, endpoint.host_port, endpoint.rank, known, serves=at.port == endpoint.port)

    async def _poll(self, sessions: "_Sessions", poller: "_Poller") -> None:
        """Scrape one endpoint until cancelled."""
        loop = asyncio.get_running_loop()
        target, reach = poller.target, poller.reach
        interval = self._settings.interval_s
        failures = 0
        metrics = NEVER_SCRAPED
        url = URL(target.url)
        due = loop.time() + poller.phase * interval
        while True:
            await poller.rest(until=due)
            due = min(due, loop.time())
            try:
                metrics = await self._read(sessions, target, url, metrics, reach)
            except Exception as error:  # noqa: BLE001  # one endpoint's trouble, of whatever kind, must not end the others
                failures += 1
                self._failed(target, error, first=failures == 1)
            else:
                if failures:
                    self._reporter.scrape_recovered(target.id)
                failures = 0
            delay = min(interval * 2 ** min(failures, 16), max(MAX_BACKOFF_S, interval))
            # At least half an interval of rest for an endpoint that answers slowly.
            due = max(due + delay, loop.time() + delay / 2)

    async def _read(
        self, sessions: "_Sessions", target: "_Target", url: URL, before: EndpointMetrics, reach: Reachability
    ) -> EndpointMetrics:
        """One poll. Raises whatever went wrong."""
        anew = reach.reachable is False
        session = sessions.connecting if anew else sessions.keeping
        try:
            async with asyncio.timeout(TIMEOUT_S):
                page = await _fetch(session, url)
        except Exception as error:
            self._look(target, reach, await sign_of(error, url, TIMEOUT_S), anew=anew)
            raise
        self._look(target, reach, Sign.ANSWERED, anew=anew)
        return self._take(target, page, before)

    def _look(self, target: "_Target", reach: Reachability, sign: Sign, *, anew: bool) -> None:
        if reach.saw(sign, self._now(), anew=anew) and target.serves:
            self._apply(EndpointReached(target.id, bool(reach.reachable)))

    def _take(self, target: "_Target", page: bytes, before: EndpointMetrics) -> EndpointMetrics:
        metrics, missing = self._readers[target.engine].read(page, rank=target.rank, before=before, now=self._now())
        for name in missing:
            self._reporter.metric_missing(target.id, name)
        if metrics.updated_at != before.updated_at:
            self._apply(MetricsScraped(target.id, metrics))
        return metrics

    def _failed(self, target: "_Target", error: Exception, *, first: bool) -> None:
        reason = _reason(error)
        if first and reason == "internal":
            logger.error("scraping %s failed in a way it should not", target.id, exc_info=error)
        self._reporter.scrape_failed(target.id, reason)


@dataclass(frozen=True, slots=True)
class _Target:
    """All a poller needs; a change of any of it starts another poller."""

    id: EndpointId
    url: str
    host_port: str
    """Where requests go."""
    rank: int
    engine: str
    serves: bool
    """Requests go to the same port."""


class _Poller:
    """One endpoint that is asked again and again."""

    __slots__ = ("_due", "_resting", "phase", "reach", "target", "task")

    def __init__(self, target: _Target, phase: float) -> None:
        self.target = target
        self.phase = phase
        """Of the interval, [0, 1): when the first poll is due."""
        self.reach = Reachability()
        self.task: asyncio.Task[None] | None = None
        self._due = False
        self._resting: asyncio.Future[None] | None = None

    async def rest(self, *, until: float) -> None:
        """Until that time of the loop, or until `hurry`."""
        if not self._due:
            loop = asyncio.get_running_loop()
            self._resting = loop.create_future()
            alarm = loop.call_at(until, self.hurry)
            try:
                await self._resting
            finally:
                alarm.cancel()
        self._due = False

    def hurry(self) -> None:
        """The next poll is due now, or right after the one under way."""
        self._due = True
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(None)


@dataclass(frozen=True, slots=True)
class _Sessions:
    """Over what connections polls go."""

    keeping: aiohttp.ClientSession
    """Connections that are kept: cheap, and they go on where no others are taken."""
    connecting: aiohttp.ClientSession
    """A new connection each poll, for endpoints that are not reachable, so that an answer shows that they are."""


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    # The deadline of a poll is ours: aiohttp's own costs a fifth of the whole poll.
    no_timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
    return aiohttp.ClientSession(connector=connector, timeout=no_timeout, headers=HEADERS, cookie_jar=aiohttp.DummyCookieJar())


class _StatusError(Exception):
    """The endpoint answered, but not with 200."""


async def _fetch(session: aiohttp.ClientSession, url: URL) -> bytes:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise _StatusError
        chunks: list[bytes] = []
        size = 0
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_PAGE_BYTES:
                raise PageError("larger than 8 MiB")
        return b"".join(chunks)


def _reason(error: Exception) -> str:
    """The `reason` of Reporter.scrape_failed."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, _StatusError):
        return "status"
    if isinstance(error, PageError):
        return "parse"
    return "connect" if isinstance(error, aiohttp.ClientError | OSError) else "internal"


def tls_context(settings: ScrapeSettings) -> ssl.SSLContext | bool:
    """How engines' certificates are judged; True: they have none, or aiohttp's own way. Raises ConfigError."""
    if settings.scheme not in {"http", "https"}:
        raise ConfigError(f"scheme: {settings.scheme!r} is not supported; give http or https")
    if settings.scheme == "http":
        return True
    try:
        context = ssl.create_default_context(cafile=settings.ca_cert_path)
        if settings.client_cert_path:
            context.load_cert_chain(settings.client_cert_path, settings.client_key_path)
    except (OSError, ssl.SSLError) as error:
        paths = ", ".join(filter(None, (settings.ca_cert_path, settings.client_cert_path, settings.client_key_path)))
        raise ConfigError(f"caCertPath, clientCertPath, clientKeyPath: cannot use {paths}: {error}") from None
    # Pods carry certificates of their own making and are addressed by IP; the names in them say nothing.
    context.check_hostname = settings.verify_tls
    context.verify_mode = ssl.CERT_REQUIRED if settings.verify_tls else ssl.CERT_NONE
    return context
