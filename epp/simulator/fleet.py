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
import threading
from pathlib import Path

import zmq

from epp.simulator.answers import AnswerWriter
from epp.simulator.config import FleetConfig, PodEndpoint
from epp.simulator.engine import Lora
from epp.simulator.model import ServedModel
from epp.simulator.pod import Pod
from epp.simulator.process import PodProcess
from epp.simulator.tokenizing import Tokenizer


class Fleet:
    """The pods of one configuration. Start once, stop once."""

    def __init__(self, config: FleetConfig, model: ServedModel | None = None) -> None:
        """`model`: loaded before, and not ours to close."""
        self.config = config
        self.endpoints: tuple[PodEndpoint, ...] = ()
        """Filled by `start`, in the order of the pods."""
        self._context = zmq.Context()
        self._processes: list[PodProcess] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._given = model
        self._loaded: ServedModel | None = None

    @property
    def pods(self) -> list[Pod]:
        """Those that live now, for a look inside; after a restart it is another one."""
        return [process.pod for process in self._processes]

    async def start(self) -> None:
        """Return when every pod serves. Raises SimulatorError (and leaves nothing behind) if that cannot be."""
        self.config.check()
        try:
            for index in range(self.config.pods):
                self._processes.append(PodProcess(self.config, index, self._context))
            model = self._given
            if model is None:
                model = self._loaded = await _load_aside(self.config)
            for process in self._processes:
                await process.start(model)
                self._tasks.append(asyncio.create_task(process.run(), name=process.name))
        except BaseException:
            await self.stop()
            raise
        self.endpoints = tuple(process.endpoint for process in self._processes)

    async def run(self) -> None:
        """Wait for ever; ends only with the exception of a pod that broke."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Stop serving: open answers are cut, ports are free when this returns. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self._processes:
            await process.stop()
        if self._loaded is not None:
            self._loaded.close()
        self._context.destroy(linger=0)

    def write_endpoints(self, path: Path) -> None:
        """Write the endpoints file, at once for whoever watches it."""
        lines = ["endpoints:", *(f"  - {json.dumps(endpoint.entry())}" for endpoint in self.endpoints), ""]
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text("\n".join(lines), encoding="utf-8")
        draft.replace(path)


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
            model = load(config)
        except Exception as error:  # noqa: BLE001  # raised again by whoever awaits the future
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, model, failure)

    threading.Thread(target=work, name="load model", daemon=True).start()
    return await loaded


def load(config: FleetConfig) -> ServedModel:
    """The model of a configuration; takes seconds. Raises SimulatorError."""
    tokenizer = Tokenizer.load(config.model_path)
    return ServedModel(
        name=config.model,
        loras={name: Lora(index, name, f"/adapters/{name}") for index, name in enumerate(config.loras, start=1)},
        max_model_len=config.max_model_len,
        tokenizer=tokenizer,
        writer=AnswerWriter(tokenizer.vocabulary(), config.seed),
    )
