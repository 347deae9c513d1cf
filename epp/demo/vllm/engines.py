"""Real vLLM engines as child processes: started together, watched while they are needed, ended always.

How one engine is started is the recipe's business (tools/vllm/serve.sh); the system chooses the ports. An engine is a group
of processes, API server, engine core and worker, which `Processes` ends as a whole. Used by `session` on its event loop.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from epp.demo.processes import DemoError, Processes
from epp.demo.progress import Progress
from epp.demo.vllm.engine import Engine, Ports
from epp.testing.picker import free_ports

# An engine needs 45 s where nothing else wants the CPU; two on two busy cores have been seen to need 160 s.
READY_TIMEOUT_S = 480.0
READY_POLL_S = 0.5
CALL_TIMEOUT_S = 60.0

_EXCEPTION = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .*")

_ENVIRONMENT = {
    # Two engines, epp, Envoy and the client share the cores: engines that pin and spin threads would starve the others.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Its default of 5 s closes connections just when Envoy uses them again, which the client sees as 503.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
}
# The chats of all modes should be the same, so the answers, which become part of the next prompts, are not left to chance.
ARGUMENTS = (
    "--enable-prompt-tokens-details",
    "--disable-uvicorn-access-log",
    "--max-model-len=8192",  # one such request must fit into the KV cache
    '--override-generation-config={"temperature": 0}',
)


def variables(ports: Ports, sockets: Path) -> dict[str, str]:
    """The environment variables of an engine; `sockets`: a folder for those its processes speak through, and leave there when they are killed."""
    own = {"HTTP_PORT": str(ports.http), "EVENTS_PORT": str(ports.events), "REPLAY_PORT": str(ports.replay)}
    return {**_ENVIRONMENT, **own, "VLLM_RPC_BASE_PATH": str(sockets)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to start."""

    script: Path
    environment: Path
    """Virtual environment that holds vLLM."""
    model: Path
    engines: int = 2
    block_size: int = 32
    """In tokens."""
    blocks: int = 512
    """KV cache of one engine: few enough that it evicts during a mode."""

    def check(self) -> None:
        """Raises DemoError where something is missing."""
        for path, what in (
            (self.script, "the script that starts vLLM is missing"),
            (self.environment / "bin" / "python", "vLLM is not installed"),
            (self.model / "tokenizer.json", "the model is missing"),
        ):
            if not path.exists():
                raise DemoError(f"{what}: no {path}; `make demo-vllm` in a checkout of epp prepares everything")

    def command(self, number: int) -> tuple[str | Path, ...]:
        """The command line of engine `number`."""
        return ("bash", self.script, self.environment, self.model, str(number), f"--num-gpu-blocks-override={self.blocks}", *ARGUMENTS)


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines that serve, and their processes."""

    all: Sequence[Engine]
    processes: Processes


@contextlib.asynccontextmanager
async def start(recipe: Recipe, folder: Path, progress: Progress) -> AsyncIterator[Engines]:
    """Engines that serve; they have ended when the block is left. Raises DemoError where they do not start."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    async with Processes(folder) as processes, aiohttp.ClientSession(timeout=timeout) as session:
        ports = free_ports(3 * recipe.engines)
        engines = [Engine(f"vllm-{i}", Ports(*ports[3 * i : 3 * i + 3]), session) for i in range(recipe.engines)]
        for number, engine in enumerate(engines):
            own = {**variables(engine.ports, processes.scratch), "BLOCK_SIZE": str(recipe.block_size)}
            await processes.start(engine.name, recipe.command(number), own)
        try:
            await processes.during(_ready(engines, folder, progress))
        except DemoError as error:
            causes = [f"{engine.name}: {cause}" for engine in engines if (cause := first_error(folder / f"{engine.name}.log"))]
            raise DemoError("\n".join([str(error), *causes])) from None
        yield Engines(engines, processes)


def first_error(log: Path) -> str | None:
    """What an engine failed for: the first exception in its output, which ends with many that only follow from it."""
    lines = log.read_text(errors="replace").splitlines()
    found = (_EXCEPTION.search(line) for line in lines if "WARNING" not in line)
    return next((match[0] for match in found if match), None)


async def _ready(engines: Sequence[Engine], folder: Path, progress: Progress) -> None:
    """Wait for all, side by side."""
    started = time.monotonic()
    while not all(await asyncio.gather(*(engine.healthy() for engine in engines))):
        waited = time.monotonic() - started
        if waited > READY_TIMEOUT_S:
            raise DemoError(f"vLLM was not ready after {READY_TIMEOUT_S:.0f} s; logs are in {folder}")
        progress.update(f"waiting for {len(engines)} vLLM engines ({waited:.0f} s; a minute is normal)")
        await asyncio.sleep(READY_POLL_S)
    progress.done(f"{len(engines)} vLLM engines are ready after {time.monotonic() - started:.0f} s")
