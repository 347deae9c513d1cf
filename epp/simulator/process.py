"""One simulated vLLM process: its three ports, its engine, and the tasks that drive it; it can die and come back.

A restart is what a picker sees of a real one: connections are cut, ports refuse for a while, then another engine with an empty
cache counts its batches from 0. Faults of the pod outlive it. In dev mode the KV ports are relays, so that the pod can hang.

Made and owned by `fleet`, on its event loop. All ports are bound by the constructor, so a taken one is known at once.
"""

import asyncio
import socket
import time

import zmq
from aiohttp import web

from epp.simulator.api import PodApi
from epp.simulator.config import EVENTS_PORT_OFFSET, REPLAY_PORT_OFFSET, FleetConfig, PodEndpoint
from epp.simulator.dev_api import DevApi
from epp.simulator.engine import Engine
from epp.simulator.errors import SimulatorError
from epp.simulator.faults import FaultInjector, Faults, Silence
from epp.simulator.hashing import BlockHasher
from epp.simulator.metrics import PodMetrics
from epp.simulator.model import ServedModel
from epp.simulator.pod import Pod
from epp.simulator.publisher import EventPublisher
from epp.simulator.relay import Relay


class PodProcess:
    """A pod, through all its lives."""

    def __init__(self, config: FleetConfig, index: int, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Takes the ports. Raises SimulatorError if one is taken."""
        base = config.base_port + index if config.base_port else 0
        self.name = f"{config.pod_name}-{index}"
        self.injector = FaultInjector(config.faults, f"{config.seed}/{self.name}")
        self.pod: Pod
        """The one that lives, or lived last."""
        events, replay = (base + EVENTS_PORT_OFFSET, base + REPLAY_PORT_OFFSET) if base else (0, 0)
        self.endpoint = PodEndpoint(self.name, config.host, base, events, replay)
        self._config = config
        self._context = context
        self._flows = asyncio.Event()
        """Cleared while the pod hangs."""
        self._sockets: list[socket.socket] = []
        """Listening: HTTP, and in dev mode what stands before events and replay."""
        self._reserved: dict[int, socket.socket] = {}
        """Bound and never listening: they refuse connections, and nobody else gets the port, between two lives."""
        self._relays: list[Relay] = []
        self._publisher: EventPublisher | None = None
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._dies: asyncio.Future[None] | None = None
        self._down_s = 0.0
        self.set_faults(config.faults)
        try:
            self._bind()
        except BaseException:
            self.close()
            raise

    async def start(self, model: ServedModel) -> None:
        """Serve; returns when requests are answered."""
        self._model = model
        publisher, config = self._publisher, self._config
        assert publisher is not None, "bound by the constructor, or again after a death"
        engine = Engine(config.engine, BlockHasher(config.hash_seed, form=config.hash_form))
        metrics = PodMetrics(config.model, max_loras=len(config.loras), started_at=time.time())
        self.pod = Pod(self.name, self.endpoint, engine, publisher, metrics, self.injector, self._flows)
        for relay in self._relays:
            await relay.start()
        application = PodApi(self.pod, model).application()
        if config.dev_mode:
            DevApi(self.pod, self).add_routes(application)
        # A client that disconnects cancels its handler, which aborts its request.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._sockets[0]).start()
        self._dies = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self.pod.run(), name=f"{self.name} steps"),
            asyncio.create_task(publisher.serve_replays(), name=f"{self.name} replay"),
        ]

    async def run(self) -> None:
        """Live, die and come back as told, until cancelled. Raises what broke a task of the pod."""
        while True:
            assert self._dies is not None, "start() comes first"
            await asyncio.wait((*self._tasks, self._dies), return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
            await self._die()
            await asyncio.sleep(self._down_s)
            if self.injector.faults.silence is not None:
                self.set_faults(self.injector.faults.awake())
            self._bind()
            await self.start(self._model)

    async def stop(self) -> None:
        """End for good; the ports are free when this returns. May be called twice."""
        await self._die()
        self.close()

    def close(self) -> None:
        """Give back the ports of a process that never started."""
        self._release()
        for reserved in self._reserved.values():
            reserved.close()
        self._reserved.clear()

    async def _die(self) -> None:
        """Answers are cut, connections closed, ports refuse."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._runner is not None:
            await self._runner.cleanup()
        for relay in self._relays:
            await relay.close()
        self._release()

    # --- what dev_api asks for ------------------------------------------------------------------------------------
    def set_faults(self, faults: Faults) -> None:
        """From now on these and no others go wrong."""
        self.injector.set(faults)
        if faults.silence is Silence.HOST:
            self._flows.clear()
        else:
            self._flows.set()

    def restart(self, down_s: float) -> None:
        """Die now, and come back after so many seconds; while that happens another wish has no effect. In dev mode only."""
        assert self._config.dev_mode, "libzmq gives its ports back at some time later"
        if self._dies is not None and not self._dies.done():
            self._down_s = down_s
            self._dies.set_result(None)

    def cut(self) -> None:
        """Break every connection to the KV ports, as a network does for a moment. In dev mode only."""
        for relay in self._relays:
            relay.cut()

    # --- ports ----------------------------------------------------------------------------------------------------
    def _bind(self) -> None:
        """Take the three ports; those that the OS chose the first time are kept for life."""
        config, known = self._config, self.endpoint
        http_port = self._listen(known.port)
        events, replay = (0, 0) if config.dev_mode else (known.events_port, known.replay_port)
        publisher = self._publisher = EventPublisher(
            self._context, config.host, events_port=events, replay_port=replay, faults=self.injector, config=config.publisher
        )
        publisher.topic = config.publisher.topic_of(pod=self.name, host=config.host, port=http_port, model=config.model)
        events, replay = publisher.events_port, publisher.replay_port
        if config.dev_mode:
            events, replay = events and self._relay(known.events_port, events), self._relay(known.replay_port, replay)
        self.endpoint = PodEndpoint(self.name, config.host, http_port, events, replay)

    def _relay(self, port: int, inner: int) -> int:
        """Stand in front of a port of the publisher; returns where."""
        port = self._listen(port)
        self._relays.append(Relay(self._sockets[-1], self._config.host, inner, self._flows))
        return port

    def _listen(self, port: int) -> int:
        """Listen on the port, or on any; returns which."""
        host = self._config.host
        try:
            if port not in self._reserved:
                reserved = _bound(host, port)
                port = reserved.getsockname()[1]
                self._reserved[port] = reserved
            listening = _bound(host, port)
            self._sockets.append(listening)
            listening.listen(128)
        except OSError as error:
            raise SimulatorError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --base-port") from error
        return port

    def _release(self) -> None:
        """Give back what a life has taken."""
        for listening in self._sockets:
            listening.close()
        if self._publisher is not None:
            self._publisher.close()
        self._sockets, self._relays, self._publisher, self._runner = [], [], None, None


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
