"""Starts real vLLM 0.32 engines by the recipe of tools/vllm, and ends them with all their processes, whatever happened.

Weights are made up at load: what the tests compare is what happens before them. An engine is ready after about 45 s where nothing
else wants the CPU.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp

from epp.demo.processes import Process, Processes
from epp.demo.vllm import engines
from epp.demo.vllm.engine import Engine, Ports
from epp.testing.picker import free_ports

ROOT: Final = Path(__file__).parents[2]
VLLM: Final = Path(os.environ.get("VLLM_HOME", ROOT / ".tools" / "vllm"))
RECORDED: Final = ROOT / "tests" / "data" / "vllm-0.32.0" / "model"
MODEL: Final = "tiny"
MAX_MODEL_LEN: Final = 4096

_SERVE: Final = ROOT / "tools" / "vllm" / "serve.sh"
_FLAGS: Final = ("--load-format", "dummy", "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "8")


def ports() -> Ports:
    """Free ones for one engine."""
    return Ports(*free_ports(3))


async def launch(
    processes: Processes, name: str, model: Path, at: Ports, flags: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> Process:
    """An engine that gets ready; `flags` and `variables` stand above those of the recipe."""
    own = {**engines.variables(at, processes.scratch), **(variables or {})}
    return await processes.start(name, ("bash", _SERVE, VLLM, model, "0", *_FLAGS, *flags), own)


async def ready(processes: Processes, child: Process, at: Ports) -> None:
    """Return when the engine serves. Raises DemoError with the end of its log where it does not."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        engine = Engine(child.name, at, session)

        async def healthy() -> bool | None:
            return await engine.healthy() or None

        await processes.wait_ready(child, healthy, engines.READY_TIMEOUT_S)
