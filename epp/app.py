"""The composition root of serving: builds every part, owns every task, ends them in order.

Nobody else constructs collaborators, reads the clock or throws dice. Long-running work lives in one TaskGroup; a task
that fails is a bug and takes the process down, loudly. The life of a process: build (a ConfigError ends it with exit
code 2), listen, learn, ready; SIGTERM: not ready but serving for --drain-timeout, then stop. SIGINT, or a second
signal, stops at once.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import signal
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from epp import BUILD, __version__, allocator, config, parts
from epp.config.flags import ServeOptions
from epp.datastore import EndpointReached, EndpointsListed, MetricsScraped, PoolState
from epp.domain import Endpoint, EndpointId
from epp.errors import ConfigError
from epp.kvcache.index import PrefixIndex
from epp.kvcache.parity import ParityMonitor
from epp.kvcache.predictions import Predictions, PrefillEnded
from epp.kvcache.tiers import MEDIUMS
from epp.observability import metrics_server, prometheus
from epp.observability.decision_log import DecisionLog
from epp.observability.log_format import configure_logging
from epp.observability.logs import LogReporter
from epp.picking import Director
from epp.plugins.datalayer.core_metrics_extractor import CoreMetricsParams
from epp.plugins.datalayer.metrics_data_source import MetricsSourceParams
from epp.reporter import Reporter, Reporters
from epp.requests.parsers import RequestParsers
from epp.scheduling.registry import Collaborators
from epp.server.certificates import Certificates
from epp.server.fast import FastServer
from epp.server.grpc_aio import GrpcServer
from epp.server.readiness import Readiness
from epp.server.service import Service
from epp.sources.file import FileDiscovery
from epp.sources.kv_asker import PortAsker
from epp.sources.kv_events import KvEventSource
from epp.sources.kv_learning import learn_caches
from epp.sources.kv_ports import EventPorts
from epp.sources.metrics import MetricsScraper, tls_context
from epp.tokenization import Tokenization, Tokenizations

logger = logging.getLogger(__name__)

HOST = "0.0.0.0"  # noqa: S104  # the data plane and the probes come from other hosts
HOUSEKEEPING_INTERVAL_S = 1.0

# Readiness waits this long for first replays: a pod that is down must not hold the picker back.
SETTLE_LIMIT_S = 10.0

# Requests that are still being picked when the server stops get this long; answers end at once.
STOP_GRACE_S = 10.0

# fastokens releases the GIL, so more than one long prompt at a time is worth it; more would starve the loop.
TOKENIZER_THREADS = 2


# Requests leave few cycles: looking for them seldom is enough, and saves a tenth of the CPU.
GC_THRESHOLD = (50_000, 20, 50)


def run(options: ServeOptions) -> int:
    """Serve until a signal; returns the exit code. Raises ConfigError where serving cannot begin."""
    configure_logging(parts.log_settings(options))
    allocator.share_one_arena()
    gc.set_threshold(*GC_THRESHOLD)
    uvloop.run(_serve(options))
    return 0


async def _serve(options: ServeOptions) -> None:
    app = App(options)
    try:
        await app.serve()
    finally:
        await app.close()


class App:
    """One serving process: its parts, built and connected."""

    def __init__(self, options: ServeOptions) -> None:
        """Build everything that can be built without I/O but the configuration's. Raises ConfigError."""
        self._options = options
        self._config = parts.configuration(options)
        self._instance = parts.instance(options)
        self._readiness = Readiness()
        self._metrics = CollectorRegistry()
        self._decision_log = DecisionLog(Path(options.decision_log), wall_clock=time.time) if options.decision_log else None
        self._reporter = self._make_reporter()
        self._pool = PoolState()
        precise = self._config.precise_prefix
        unit = precise.token_processor_config.unit if precise else 1
        # Without events nothing that is expected of engines could ever be seen.
        events = precise.kv_events_config if precise else None
        watched = events is not None and (events.discover_pods or bool(events.zmq_endpoint))
        self._parity = ParityMonitor(self._reporter, stale=self._on_stale)
        predictions = Predictions(time.monotonic, outcomes=self._parity, prefill_ended=self._on_prefill_ended)
        self._index = PrefixIndex(
            self._reporter,
            default_block_size=unit,
            predictions=predictions if watched else None,
            mediums=tuple(precise.indexer_config.weights) if precise else MEDIUMS,
        )
        built = config.build(self._config, Collaborators(index=self._index), self._reporter)
        self._scheduler = built.scheduler
        self._executor = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._tokenization = self._make_tokenization()
        self._scraper = self._make_scraper()
        self._port_asker = self._make_port_asker()
        self._kv_events = self._make_kv_events()
        self._discovery = self._make_discovery()
        self._director = Director(
            parse=RequestParsers(self._config.parsers, whole_bodies=self._config.reads_bodies).parse,
            tokenize=self._tokenization.tokenize if self._tokenization else None,
            snapshot=self._pool.snapshot,
            scheduler=self._scheduler,
            reporter=self._reporter,
            now=time.monotonic,
            rng=random.Random(),  # noqa: S311  # breaks ties, guards nothing
            new_id=_ids(),
            new_request_id=lambda: str(uuid.uuid4()),
            instance=self._instance,
            honour_subset=not options.disable_endpoint_subset_filter,
            emit_scores=options.emit_endpoint_scores,
            not_connected=self._scraper.doubt if self._scraper else None,
        )
        self._certificates = (
            Certificates(parts.tls_settings(options), self._reporter, names=parts.own_names(), wall_clock=time.time)
            if options.secure_serving
            else None
        )
        self._server = self._make_server()

    # --- life -----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Listen, learn and answer until a signal has drained the process."""
        for line in (*self._options.notes, *self._config.warnings):
            logger.info("%s", line)
        for line in config.show(self._config).splitlines():
            logger.debug("effective configuration: %s", line)
        loop = asyncio.get_running_loop()
        drain, stop = asyncio.Event(), asyncio.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._on_signal, signal_number, drain, stop)
        metrics = metrics_server.serve(
            self._metrics,
            self._options.metrics_port,
            cert_dir=self._options.metrics_cert_dir,
            client_ca=self._options.metrics_client_ca_file,
        )
        try:
            if self._kv_events:
                self._kv_events.start(loop)
            self._discovery.load()
            self._readiness.synced = True
            await self._server.start()
            logger.info(
                "epp %s (%s) serves on port %d with %s; health also on %d, /metrics on %d",
                *(__version__, BUILD, self._server.port, self._certificates or "plaintext", self._server.health_port, metrics.port),
            )
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(work) for work in self._background()]
                await drain.wait()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._options.drain_timeout)
                await self._stop_serving(stop)
                for task in background:
                    task.cancel()
        finally:
            await asyncio.to_thread(metrics.close)

    async def _stop_serving(self, at_once: asyncio.Event) -> None:
        """End what is open in order, until `at_once`."""
        stopping = asyncio.create_task(self._server.stop(STOP_GRACE_S))
        hurry = asyncio.create_task(at_once.wait())
        await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await self._server.stop(0.0)
        await stopping

    async def close(self) -> None:
        """Give back what was opened; safe after a start that failed half way."""
        await self._server.stop(0.0)
        if self._kv_events:
            await self._kv_events.stop()
        if self._tokenization:
            await self._tokenization.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._decision_log:
            self._decision_log.close()

    def _on_signal(self, number: signal.Signals, drain: asyncio.Event, stop: asyncio.Event) -> None:
        """SIGTERM drains; SIGINT, or a second signal, stops at once (spec/protocol.md 5.7)."""
        if number is signal.SIGINT or drain.is_set():
            stop.set()
        elif self._options.drain_timeout:
            logger.info("draining for %g s; a second signal stops at once", self._options.drain_timeout)
        self._readiness.draining = True
        drain.set()

    # --- parts ----------------------------------------------------------------------------------------------

    def _make_reporter(self) -> Reporter:
        reporters: list[Reporter] = [
            prometheus.PrometheusReporter(
                self._metrics,
                pool_name=self._options.pool_name or parts.DEFAULT_POOL,
                build_ref=__version__,
                grpc_stream_metrics=self._options.enable_grpc_stream_metrics,
            ),
            LogReporter(),
        ]
        if self._decision_log:
            reporters.append(self._decision_log)
        return Reporters(reporters)

    def _make_server(self) -> FastServer | GrpcServer:
        options = self._options
        service = Service(
            self._director, self._readiness, self._reporter, max_body=options.max_request_body, now=time.monotonic, instance=self._instance
        )
        port, health_port, max_message = options.grpc_port, options.grpc_health_port, options.grpc_max_recv_msg_size
        if options.transport == "fast":
            context = self._certificates.context if self._certificates else None
            return FastServer(service, host=HOST, port=port, health_port=health_port, max_recv_message_bytes=max_message, tls=context)
        credentials = self._certificates.grpc_credentials() if self._certificates else None
        return GrpcServer(service, host=HOST, port=port, health_port=health_port, max_recv_message_bytes=max_message, tls=credentials)

    def _make_tokenization(self) -> Tokenizations | None:
        producers = self._config.token_producers
        # Which model an adapter on an endpoint is of, only a single model leaves no doubt about.
        known_loras = self._index.known_loras if len(producers) == 1 else frozenset
        models = [
            Tokenization(params.model_name, parts.backend(params), known_loras=known_loras, executor=self._executor) for params in producers
        ]
        return Tokenizations(models) if models else None

    def _make_scraper(self) -> MetricsScraper | None:
        params = self._config.metrics_source
        if params is None:
            return None
        return MetricsScraper(
            self._on_scraped,
            self._reporter,
            now=time.monotonic,
            settings=parts.scrape_settings(params, self._options),
            extraction=parts.extraction(self._config.metrics_extractor or CoreMetricsParams(), self._options),
        )

    def _make_kv_events(self) -> KvEventSource | None:
        params = self._config.precise_prefix
        events = params.kv_events_config if params else None
        if events is None or not (events.discover_pods or events.zmq_endpoint):
            return None
        ports = events.pod_discovery_config
        return KvEventSource(
            self._index,
            self._reporter,
            topic_filter=events.topic_filter,
            ports=EventPorts(ports.socket_port, ports.replay_socket_port, ask=self._port_asker.sync),
            clock=time.monotonic,
            bind=events.zmq_endpoint,
            discover=events.discover_pods,
            lost=self._port_asker.ask_again,
        )

    def _make_port_asker(self) -> PortAsker:
        settings = parts.scrape_settings(self._config.metrics_source or MetricsSourceParams(), self._options)
        precise = self._config.precise_prefix
        bound = precise is not None and bool(precise.kv_events_config.zmq_endpoint)
        return PortAsker(self._reporter, scheme=settings.scheme, tls=tls_context(settings), bound=bound)

    def _make_discovery(self) -> FileDiscovery:
        params = self._config.file_discovery
        if params is None:
            raise ConfigError(
                f"{self._config.source}: dataLayer.discovery.pluginRef: not given; endpoints from Kubernetes are not supported yet, "
                "declare a file-discovery plugin and name it there"
            )
        return FileDiscovery(Path(params.path), watch=params.watch_file, on_endpoints=self._on_endpoints)

    # --- knowledge ------------------------------------------------------------------------------------------

    def _on_prefill_ended(self, prefill: PrefillEnded) -> None:
        """The events of an endpoint showed that it has computed a prompt."""
        self._scheduler.prefill_ended(prefill.decision_id, prefill.endpoint, prefill.at)
        self._reporter.prefill_ended(prefill.endpoint, prefill.model, prefill.seconds)

    def _on_stale(self, endpoint: EndpointId) -> None:
        """An endpoint does not find what it is taken to hold."""
        if self._kv_events:
            self._kv_events.distrust(endpoint, "hits_are_not_found")

    def _on_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """Everybody who keeps something by endpoint learns of the new list at the same moment."""
        change = self._pool.apply(EndpointsListed(endpoints))
        if self._scraper:
            self._scraper.sync(endpoints)
        if self._kv_events:
            self._kv_events.sync(endpoints)
        for endpoint_id in change.removed:
            if self._kv_events is None:
                self._index.remove(endpoint_id)
            self._scheduler.endpoint_removed(endpoint_id)
            self._parity.removed(endpoint_id)
            self._reporter.endpoint_removed(endpoint_id)  # last: any later word about it would make its series anew
        self._reporter.endpoints_changed(self._pool.reachable)

    def _on_scraped(self, scraped: MetricsScraped | EndpointReached) -> None:
        before = self._pool.reachable
        self._pool.apply(scraped)
        if isinstance(scraped, EndpointReached):
            if self._pool.reachable != before:
                told = self._reporter.endpoint_reachable if scraped.reachable else self._reporter.endpoint_unreachable
                told(scraped.endpoint, self._pool.reachable)
            return
        if scraped.metrics.block_size:
            self._index.set_block_size(scraped.endpoint, scraped.metrics.block_size)
        if self._kv_events:
            self._kv_events.reconcile(scraped.endpoint, scraped.metrics)
        self._parity.scraped(scraped.endpoint, scraped.metrics)

    # --- tasks ----------------------------------------------------------------------------------------------

    def _background(self) -> Iterator[Coroutine[None, None, None]]:
        yield self._learn()
        yield self._close_forgotten()
        yield self._observe_pool()
        yield self._discovery.run()
        if self._kv_events:
            yield self._kv_events.run()
            yield self._port_asker.run(self._kv_events.told)
        if self._scraper:
            yield self._scraper.run()
        if self._decision_log:
            yield self._decision_log.run()
        if self._certificates:
            yield self._certificates.run()

    async def _learn(self) -> None:
        """Ready when the tokenizer is there, or will never be, and the first replays are over, or took too long."""
        if self._tokenization:
            await self._tokenization.start()
        if self._kv_events:
            await learn_caches(self._kv_events, limit_s=SETTLE_LIMIT_S)
        gc.collect()
        gc.freeze()  # what was built so far stays
        allocator.give_back()
        self._readiness.learnt = True
        logger.info("ready: %d endpoints", len(self._pool.snapshot().endpoints))

    async def _observe_pool(self) -> None:
        """The pool's averages, of endpoints whose metrics are fresh."""
        while True:
            oldest = time.monotonic() - self._options.metrics_staleness_threshold
            endpoints = self._pool.snapshot().endpoints
            self._reporter.pool_load([e for e in endpoints if e.metrics.updated_at is not None and e.metrics.updated_at >= oldest])
            await asyncio.sleep(self._options.refresh_prometheus_metrics_interval)

    async def _close_forgotten(self) -> None:
        """Once a second: close the decisions whose end nobody will tell, free what is no longer speculated or held."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            self._director.expire()
            more = self._kv_events is None  # with events their source sweeps, between its own slices
            while more:
                more = self._index.sweep(time.monotonic())
                await asyncio.sleep(0)


def _ids() -> Callable[[], str]:
    """Unique strings at a tenth of a UUID's cost: one random number a process, then a count."""
    process, numbers = f"{random.SystemRandom().getrandbits(64):x}", itertools.count()
    return lambda: f"{process}-{next(numbers):x}"
