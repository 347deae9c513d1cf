"""One picker with an Envoy of its own in front of the stand-ins, started the way a user would; all of them are child processes.

Every rig of a block stays up for the whole block, so that its samples can be taken in turns; the ones that are not measured idle.
"""

import asyncio
import contextlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench import configs, procfs
from bench.load import Load
from bench.records import Sample, Work
from epp import names
from epp.demo.processes import Process, Processes
from epp.testing import bootstrap, envoy
from epp.testing.bootstrap import Responses
from epp.testing.picker import free_ports, is_serving

ENDPOINTS = 8
READY_TIMEOUT_S = 60.0

# After the last answer its access-log entry is still on its way.
_SETTLE_S = 0.1

# Names of the ports and files a picker's command line is given.
GRPC_PORT, HEALTH_PORT, METRICS_PORT, ENDPOINTS_FILE, CONFIG = "{port}", "{health_port}", "{metrics_port}", "{endpoints_file}", "{config}"


@dataclass(frozen=True, slots=True)
class Picker:
    """Something that speaks ext_proc: ours, or anybody's."""

    name: str
    command: Sequence[str]
    """With the placeholders above."""
    tls: bool = False
    """Its ext_proc port speaks TLS."""
    configs: Mapping[Work, Path] | None = None
    """Templates of its own, in which {endpoints_file} is replaced; None: it reads ours."""
    port: int = 0
    """The port it listens on whatever it is told; 0: it takes {port}."""

    def does(self, work: Work) -> bool:
        """Whether there is a configuration for that much work."""
        return self.configs is None or work in self.configs


def ours(transport: str, *, tls: bool = False, compiled: Path | None = None) -> Picker:
    """epp, with one of its transports; `compiled`: the folder of the compiled build, instead of this one."""
    where = () if compiled is None else ("env", f"PYTHONPATH={compiled.resolve()}")
    command = (
        # -P: not the epp of this folder, where another is named.
        *(*where, sys.executable, "-P", "-m", "epp", f"--config-file={CONFIG}", f"--transport={transport}"),
        *(f"--grpc-port={GRPC_PORT}", f"--grpc-health-port={HEALTH_PORT}", f"--metrics-port={METRICS_PORT}"),
        # Scraping is a standing cost, not one of a request: seldom enough not to show in these figures.
        *("--refresh-metrics-interval=5s", f"--secure-serving={str(tls).lower()}", "--drain-timeout=0s"),
    )
    return Picker(f"epp {transport}" if compiled is None else f"epp {transport}, compiled", command, tls)


@dataclass(slots=True)
class RunningPicker:
    """A picker that is ready."""

    picker: Picker
    process: Process
    port: int


@dataclass(slots=True)
class Rig:
    """A picker and its Envoy."""

    running: RunningPicker
    envoy: Process
    port: int
    """Of Envoy's listener."""
    admin: str
    """Base URL."""

    async def sample(self, requests: Sequence[bytes], *, warm_s: float, seconds: float) -> Sample:
        """Load it, first unmeasured, and read the clocks of both processes while nothing is under way, before and after.

        So every request counts with all it costs, however long its answer takes.
        """
        async with Load(self.port, requests) as warming:
            await warming.during(warm_s)
        await asyncio.sleep(_SETTLE_S)
        started, messages, clocks = time.monotonic(), await self._messages(), self._clocks()
        async with Load(self.port, requests) as load:
            await load.during(seconds)
        lasted = time.monotonic() - started
        await asyncio.sleep(_SETTLE_S)
        picker, envoy = (after - before for after, before in zip(self._clocks(), clocks, strict=True))
        return Sample(lasted, load.answers, picker, envoy, await self._messages() - messages)

    def _clocks(self) -> tuple[float, float]:
        return procfs.cpu_seconds(self.running.process.pid), procfs.cpu_seconds(self.envoy.pid)

    async def _messages(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/stats?format=json&filter=stream_msgs_sent") as answer:
            stats = json.loads(await answer.text())["stats"]
        return sum(stat["value"] for stat in stats if "value" in stat)


class Workshop:
    """Starts things, ends them all when its context is left."""

    def __init__(self, processes: Processes, folder: Path, endpoints_file: Path, model_folder: Path) -> None:
        """Use `workshop`."""
        self._processes = processes
        self._folder = folder
        self._endpoints_file = endpoints_file
        self._model_folder = model_folder
        self._events = False
        self._numbers = itertools.count(1)

    def publish_at(self, ports: Sequence[int]) -> None:
        """The endpoints publish KV events on these ports: pickers started from now on are told so, and listen."""
        entries = json.loads(self._endpoints_file.read_text())["endpoints"]
        for entry, port in zip(entries, ports, strict=True):
            entry["labels"] = {names.KV_EVENTS_PORT_LABEL: str(port)}
        self._endpoints_file.write_text(json.dumps({"endpoints": entries}, indent=1))
        self._events = True

    async def picker(self, picker: Picker, work: Work) -> RunningPicker:
        """Start one and wait until it is ready."""
        name = f"{next(self._numbers)}-{_file_name(picker.name)}-{work.value}"
        config = self._folder / f"{name}.yaml"
        if picker.configs is None:
            text = configs.render(work, endpoints=self._endpoints_file, model_folder=self._model_folder, events=self._events)
            config.write_text(text)
        else:
            config.write_text(picker.configs[work].read_text().replace(ENDPOINTS_FILE, str(self._endpoints_file)))
        ports = free_ports(3)
        values = dict(zip((GRPC_PORT, HEALTH_PORT, METRICS_PORT), map(str, ports), strict=True))
        values |= {ENDPOINTS_FILE: str(self._endpoints_file), CONFIG: str(config)}
        process = await self._processes.start(name, [_filled(word, values) for word in picker.command])
        port = picker.port or ports[0]
        health = ports[1] if any(HEALTH_PORT in word for word in picker.command) else None
        await self._processes.wait_ready(process, lambda: _ready(port, health), READY_TIMEOUT_S)
        return RunningPicker(picker, process, port)

    async def rig(self, picker: Picker, work: Work, responses: Responses = Responses.ACCESS_LOG) -> Rig:
        """Start a picker and an Envoy that asks it."""
        running = await self.picker(picker, work)
        name = f"{running.process.name}-envoy"
        file, admin_address = self._folder / f"{name}.json", self._folder / f"{name}.admin"
        front = bootstrap.standalone(listener=0, admin=0, epp=running.port, responses=responses, tls=picker.tls)
        file.write_text(json.dumps(front, indent=1))
        process = await self._processes.start(name, envoy.command(file, admin_address))
        async with aiohttp.ClientSession() as session:
            port = await self._processes.wait_ready(process, lambda: envoy.listener_port(session, admin_address), READY_TIMEOUT_S)
        return Rig(running, process, port, f"http://{admin_address.read_text().strip()}")


@contextlib.asynccontextmanager
async def workshop(folder: Path, model_folder: Path, endpoints: int = ENDPOINTS) -> AsyncIterator[Workshop]:
    """A place for one block: the stand-ins are up. Output and configurations of all processes stay in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    endpoints_file = folder / "endpoints.json"
    async with Processes(folder) as processes:
        command = (sys.executable, "-m", "bench.model_server", f"--endpoints-file={endpoints_file}", f"--count={endpoints}")
        servers = await processes.start("model servers", command)

        async def listed() -> bool | None:
            return endpoints_file.exists() or None

        await processes.wait_ready(servers, listed, READY_TIMEOUT_S)
        yield Workshop(processes, folder, endpoints_file, model_folder)


async def _ready(port: int, health_port: int | None) -> bool | None:
    if health_port is not None:
        return await is_serving(health_port) or None
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    writer.close()
    return True


def _filled(word: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
