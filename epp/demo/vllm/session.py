"""One session of `epp demo-vllm`: two real engines, first behind plain Envoy, then behind Envoy and epp, with the same chats.

The engines are started once, because that takes a minute; before each mode their caches are cleared. Round robin comes first,
so that epp starts, as in production, beside engines with a past: it has to read that from their replay sockets, and forget
what they cleared. Owns the event loop's work from start to end; nothing it started outlives it. Called by `command`.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from epp import __version__
from epp.demo import fleet, results, session, terminal
from epp.demo.figures import measure
from epp.demo.processes import Processes
from epp.demo.progress import Progress
from epp.demo.records import Mode, ModeRun
from epp.demo.session import Outcome
from epp.demo.tokens import Transcriber
from epp.demo.vllm import engines, report, tokenizer
from epp.demo.vllm.counters import Counters
from epp.demo.vllm.engine import MODEL, Engine
from epp.demo.vllm.verdict import EngineVerdict, complaints, judge
from epp.demo.workload import Size, Workload, generate
from epp.testing import envoy

MODES = (Mode.ROUND_ROBIN, Mode.PRECISE)

# An engine makes its page in 5 ms of CPU time, which at epp's usual 50 ms would be a tenth of these two cores.
METRICS_INTERVAL = "250ms"
# Few at a time: two engines, epp, Envoy and the client share two cores.
SIZE = Size(conversations=60, span_s=12.0, turns=(3, 5), system_words=(800, 2000), answer_tokens=(8, 16), think_s=0.3, tenants=6, at_once=4)


@dataclass(frozen=True, slots=True)
class Options:
    """What to play, and on what."""

    seed: int
    output: Path
    recipe: engines.Recipe
    port: int = 0
    """Envoy's listener; 0: the system chooses."""
    size: Size = SIZE


@dataclass(frozen=True, slots=True)
class Judged:
    """One mode as the client saw it, and as the engines counted it."""

    run: ModeRun
    verdicts: Sequence[EngineVerdict]
    complaints: Sequence[str]


async def play(options: Options, progress: Progress) -> Outcome:
    """Play both modes and write results.json. Raises EppError where something cannot start or dies."""
    started = time.monotonic()
    options.recipe.check()
    envoy.binary()  # known missing before a minute is spent
    session.prepare(options.output)
    if options.port:
        fleet.check_port(options.port)
    workload = generate(options.seed, options.size)
    transcriber = await asyncio.to_thread(_transcriber, options.recipe.model)
    logs = options.output / "logs"
    async with engines.start(options.recipe, logs, progress) as running:
        version = await running.all[0].version()
        modes = await running.processes.during(_play_modes(options, workload, transcriber, running.all, logs, progress))
    progress.clear()
    return _write(options, workload, modes, {"vLLM": version, "epp": __version__, "Whole session": f"{time.monotonic() - started:.0f} s"})


def _transcriber(model: Path) -> Transcriber:
    return Transcriber(model, tokenizer.load(model))


async def _play_modes(
    options: Options, workload: Workload, transcriber: Transcriber, serving: Sequence[Engine], logs: Path, progress: Progress
) -> dict[Mode, Judged]:
    await asyncio.gather(*(engine.warm_up() for engine in serving))
    return {mode: await _play_mode(mode, options, workload, transcriber, serving, logs / mode.value, progress) for mode in MODES}


async def _play_mode(
    mode: Mode,
    options: Options,
    workload: Workload,
    transcriber: Transcriber,
    serving: Sequence[Engine],
    folder: Path,
    progress: Progress,
) -> Judged:
    progress.step(f"{terminal.LABELS[mode]}: clearing the caches, starting {'epp and ' if mode.has_picker else ''}Envoy ...")
    settings = fleet.Settings(
        model_folder=options.recipe.model,
        model=MODEL,
        pods=len(serving),
        port=options.port,
        block_size=options.recipe.block_size,
        metrics_interval=METRICS_INTERVAL,
    )
    before = await asyncio.gather(*(engine.empty() for engine in serving))
    run = await session.play_mode(mode, _front(mode, settings, serving, folder), settings, workload, transcriber, folder, progress)
    answers = Counter(request.pod for request in run.requests if request.error is None)
    growths: dict[str, Counters] = {}
    for engine, earlier in zip(serving, before, strict=True):
        growths[engine.name] = (await engine.counted(earlier.requests + answers[engine.name])).since(earlier)
    verdicts = judge(run, growths)
    return Judged(run, verdicts, complaints(run, verdicts))


@contextlib.asynccontextmanager
async def _front(mode: Mode, settings: fleet.Settings, serving: Sequence[Engine], folder: Path) -> AsyncIterator[fleet.Fleet]:
    """Envoy, and epp if the mode has it, before engines that go on running."""
    async with Processes(folder) as processes:
        (folder / "endpoints.yaml").write_text(json.dumps({"endpoints": [engine.endpoint for engine in serving]}, indent=1))
        yield await fleet.route(processes, mode, settings, folder, [engine.pod for engine in serving], tell_endpoint=True)


def _write(options: Options, workload: Workload, modes: Mapping[Mode, Judged], facts: Mapping[str, str]) -> Outcome:
    runs = {mode: judged.run for mode, judged in modes.items()}
    figures = {mode: measure(run) for mode, run in runs.items()}
    precise = modes[Mode.PRECISE]
    data = options.output / "results.json"
    record = results.records(workload, runs, figures, [], facts)
    record["engines"] = {mode.value: [_record(verdict) for verdict in judged.verdicts] for mode, judged in modes.items()}
    record["complaints"] = sentences = [
        f"{terminal.LABELS[mode]}: {sentence}" for mode, judged in modes.items() for sentence in judged.complaints
    ]
    data.write_bytes(results.formatted(record))
    title = (
        f"{options.recipe.engines} vLLM {facts['vLLM']} engines on this CPU: {workload.requests} requests in {len(workload.conversations)} chats "
        f"of {len(workload.tenants)} tenants, each mode on empty caches"
    )
    text = f"{title}\n\n{report.render(figures, precise.verdicts, precise.run.explanations)}\n"
    text += f"Every request: {data}\nSeed {options.seed}. Took {facts['Whole session']}.\n"
    return Outcome(text, "\n".join(("the check failed:", *(f"    {sentence}" for sentence in sentences))) if sentences else None)


def _record(verdict: EngineVerdict) -> dict[str, object]:
    return {
        **asdict(verdict),
        "apart_tokens": verdict.apart_tokens,
        "apart_blocks_per_request": verdict.apart_blocks_per_request,
        "agrees": verdict.agrees,
    }
