"""A hundred pods publish at once: what that costs the picker, and what requests notice of it. Used on one event loop.

All pods publish at the same instant, so many times a second. Each rate is held twice: without requests, which gives the CPU a block,
and beside a few connections through Envoy, which gives latencies. Nothing else of this bench measures latencies: with all
processes on the same cores they are the machine's as much as ours, so what counts is the difference to the row without events.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from bench import procfs
from bench.load import BenchError, Load
from bench.records import EventsRow
from bench.rig import Rig

PODS: Final = 100
RATES: Final = (0.0, 10.0, 40.0)
"""Batches a second of each pod: 16 blocks of 16 tokens each, so 2,560 and 10,240 prompt tokens a second and pod."""
CONNECTIONS: Final = 4

# Until the picker has connected to all of them and heard a round.
_WARM_S: Final = 4.0
# What was published last is applied by then.
_SETTLE_S: Final = 0.2


class Publishers:
    """The process that publishes."""

    def __init__(self, process: asyncio.subprocess.Process, ports: Sequence[int]) -> None:
        """Use `publishers`."""
        self._process = process
        self.ports = ports

    async def publish(self, seconds: float, per_second: float) -> int:
        """All pods, so often; returns the blocks stored."""
        if not per_second:
            await asyncio.sleep(seconds)
            return 0
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds} {per_second}\n".encode())
        return int(await _line(self._process))


@contextlib.asynccontextmanager
async def publishers() -> AsyncIterator[Publishers]:
    """Started, and ended with the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.publishers", f"--count={PODS}", stdin=pipe, stdout=pipe)
    try:
        yield Publishers(process, json.loads(await _line(process)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise BenchError("the stand-ins for KV events have died")
    return line


async def warm(fleet: Publishers, rig: Rig, posts: Sequence[bytes]) -> None:
    """The index is as full as it gets, and every prompt has been seen."""
    async with Load(rig.port, posts, connections=CONNECTIONS) as load:
        await asyncio.gather(load.during(_WARM_S), fleet.publish(_WARM_S, 20.0))


async def sample(row: EventsRow, fleet: Publishers, rig: Rig, posts: Sequence[bytes]) -> None:
    """One sample of a rate."""
    pid = rig.running.process.pid
    started, before = time.monotonic(), procfs.cpu_seconds(pid)
    row.blocks.append(await fleet.publish(row.seconds, row.per_second))
    await asyncio.sleep(_SETTLE_S)
    row.cpu_seconds.append(procfs.cpu_seconds(pid) - before)
    row.share.append(row.cpu_seconds[-1] / (time.monotonic() - started))
    async with Load(rig.port, posts, connections=CONNECTIONS) as load:
        await asyncio.gather(load.during(row.seconds), fleet.publish(row.seconds, row.per_second))
    row.latencies.append(sorted(load.latencies))
