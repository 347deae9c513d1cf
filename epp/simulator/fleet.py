"""N simulated pods in one process: binds their ports, loads the model once, runs them, stops them.

The simulator's composition root, for `epp simulate`, the demo and tests:

    fleet = Fleet(FleetConfig(model_path=folder, model="qwen"))
    await fleet.start()
    ... fleet.endpoints ...
    await fleet.stop()

One event loop; owns every task, socket and the tokenizer thread. All ports are bound before the (slow) model is
loaded, so a taken one is known at once.
"""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from aiohttp import web

from epp import names
from epp.simulator.answers import AnswerWriter
from epp.simulator.api import PodApi
from epp.simulator.engine import Engine, EngineConfig, Lora
from epp.simulator.errors import SimulatorError
from epp.simulator.hashing import DEFAULT_SEED, BlockHasher
from epp.simulator.metrics import PodMetrics
from epp.simulator.model import ServedModel
from epp.simulator.pod import Pod
from epp.simulator.publisher import EventPublisher
from epp.simulator.tokenizing import Tokenizer

NAMESPACE = "default"

# With --base-port B pod i has B+i for HTTP, B+100+i for KV events and B+200+i for replay.
MAX_PODS = 100
EVENTS_PORT_OFFSET = 100
REPLAY_PORT_OFFSET = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """What to simulate."""

    model_path: Path
    """Folder with tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    model: str
    """Served model name."""
    loras: Sequence[str] = ()
    pods: int = 4
    host: str = "127.0.0.1"
    """IPv4 address to listen on; pickers connect to the same."""
    base_port: int = 0
    """0: the OS chooses every port."""
    max_model_len: int = 16384
    seed: int = 0
    """Of the answers."""
    hash_seed: str = DEFAULT_SEED
    """vLLM's PYTHONHASHSEED."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    def check(self) -> None:
        """Raise SimulatorError for values that cannot work together."""
        if not 1 <= self.pods <= MAX_PODS:
            raise SimulatorError(f"--pods must be 1 to {MAX_PODS}, not {self.pods}")
        if self.max_model_len > self.engine.capacity_tokens:
            raise SimulatorError(
                f"--max-model-len {self.max_model_len} does not fit into the cache: {self.engine.num_blocks} blocks of "
                f"{self.engine.block_size} hold {self.engine.capacity_tokens} tokens; raise --num-blocks or lower --max-model-len"
            )


@dataclass(frozen=True, slots=True)
class PodEndpoint:
    """Where one pod is reached."""

    name: str
    host: str
    port: int
    events_port: int
    replay_port: int

    @property
    def url(self) -> str:
        """Base URL of the pod's API."""
        return f"http://{self.host}:{self.port}"

    def entry(self) -> dict[str, object]:
        """The entry of an endpoints file (spec/protocol.md 3.7)."""
        labels = {names.KV_EVENTS_PORT_LABEL: str(self.events_port), names.KV_REPLAY_PORT_LABEL: str(self.replay_port)}
        return {"name": self.name, "namespace": NAMESPACE, "address": self.host, "port": str(self.port), "labels": labels}


class Fleet:
    """The pods of one configuration. Start once, stop once."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.endpoints: tuple[PodEndpoint, ...] = ()
        """Filled by `start`, in the order of the pods."""
        self._context = zmq.Context()
        self._pods: list[Pod] = []
        self._sockets: list[socket.socket] = []
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._model: ServedModel | None = None

    async def start(self) -> None:
        """Return when every pod serves. Raises SimulatorError (and leaves nothing behind) if that cannot be."""
        self.config.check()
        try:
            for index in range(self.config.pods):
                self._bind(index)
            self._model = await _load_aside(self.config)
            for pod, http_socket in zip(self._pods, self._sockets, strict=True):
                await self._serve(pod, http_socket, self._model)
        except BaseException:
            await self.stop()
            raise
        self.endpoints = tuple(
            PodEndpoint(pod.name, pod.host, pod.port, pod.publisher.events_port, pod.publisher.replay_port) for pod in self._pods
        )

    async def run(self) -> None:
        """Wait for ever; ends only with the exception of a pod that broke."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Stop serving: open answers are cut, ports are free when this returns. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        for http_socket in self._sockets:
            http_socket.close()
        for pod in self._pods:
            pod.publisher.close()
        if self._model is not None:
            self._model.close()
        self._context.destroy(linger=0)

    def write_endpoints(self, path: Path) -> None:
        """Write the endpoints file, at once for whoever watches it."""
        lines = ["endpoints:", *(f"  - {json.dumps(endpoint.entry())}" for endpoint in self.endpoints), ""]
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text("\n".join(lines), encoding="utf-8")
        draft.replace(path)

    def _bind(self, index: int) -> None:
        """Take the three ports of a pod and build it."""
        config = self.config
        base = config.base_port + index if config.base_port else 0
        http_socket = _listen(config.host, base)
        self._sockets.append(http_socket)
        publisher = EventPublisher(
            self._context,
            config.host,
            events_port=base and base + EVENTS_PORT_OFFSET,
            replay_port=base and base + REPLAY_PORT_OFFSET,
        )
        port: int = http_socket.getsockname()[1]
        # llm-d's convention: a picker can tell pod and model from the topic alone.
        publisher.topic = f"kv@{config.host}:{port}@{config.model}"
        engine = Engine(config.engine, BlockHasher(config.hash_seed))
        metrics = PodMetrics(config.model, max_loras=len(config.loras))
        self._pods.append(Pod(f"pod-{index}", config.host, port, engine, publisher, metrics))

    async def _serve(self, pod: Pod, http_socket: socket.socket, model: ServedModel) -> None:
        # A client that disconnects cancels its handler, which aborts its request.
        runner = web.AppRunner(PodApi(pod, model).application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self._runners.append(runner)
        await runner.setup()
        await web.SockSite(runner, http_socket).start()
        self._tasks.append(asyncio.create_task(pod.run(), name=f"{pod.name} steps"))
        self._tasks.append(asyncio.create_task(pod.publisher.serve_replays(), name=f"{pod.name} replay"))


def _listen(host: str, port: int) -> socket.socket:
    http_socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        http_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        http_socket.bind((host, port))
        http_socket.listen(128)
    except OSError as error:
        http_socket.close()
        raise SimulatorError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --base-port") from error
    return http_socket


async def _load_aside(config: FleetConfig) -> ServedModel:
    """Load in a daemon thread: unlike asyncio's own threads it does not hold up Ctrl-C for the seconds that takes."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[ServedModel] = loop.create_future()

    def settle(model: ServedModel | None, error: Exception | None) -> None:
        if loaded.cancelled():
            return
        if model is not None:
            loaded.set_result(model)
        elif error is not None:
            loaded.set_exception(error)

    def work() -> None:
        model, failure = None, None
        try:
            model = _load(config)
        except Exception as error:  # noqa: BLE001  # raised again by whoever awaits the future
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, model, failure)

    threading.Thread(target=work, name="load model", daemon=True).start()
    return await loaded


def _load(config: FleetConfig) -> ServedModel:
    tokenizer = Tokenizer.load(config.model_path)
    return ServedModel(
        name=config.model,
        loras={name: Lora(index, name, f"/adapters/{name}") for index, name in enumerate(config.loras, start=1)},
        max_model_len=config.max_model_len,
        tokenizer=tokenizer,
        writer=AnswerWriter(tokenizer.vocabulary(), config.seed),
    )
