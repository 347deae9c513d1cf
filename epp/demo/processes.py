"""Child processes that never outlive the demo: each in a process group of its own, its output in a file, ended in every case.

A terminal's Ctrl-C reaches only the demo, which then ends its children in order: a polite signal, a short wait, then an end
without asking. On Linux a child also dies when the demo itself is killed without a chance to clean up. A child that ends by
itself while it is needed is an error that shows the last lines it wrote. Used on one event loop.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from epp.errors import EppError

T = TypeVar("T")

STOP_TIMEOUT_S = 5.0
READY_POLL_S = 0.05
SHOWN_LINES = 12

_PR_SET_PDEATHSIG = 1


class DemoError(EppError):
    """The demo cannot go on. `str()` says what happened and what to do."""


class Process:
    """One running child."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self._process.pid

    def check(self) -> None:
        """Raises DemoError if it has ended."""
        if (code := self._process.returncode) is not None:
            raise DemoError(f"{self.name} ended by itself with code {code}; the end of {self.log}:\n{self.last_lines()}")

    async def watch(self) -> None:
        """Wait until it ends, which is an error."""
        await self._process.wait()
        self.check()

    def last_lines(self) -> str:
        """The end of its output, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"

    async def stop(self) -> None:
        """End its whole group; returns when the child is gone."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        # What the child left behind in its group has no parent to end it.
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(self._process.pid, number)


class Processes:
    """The children of one mode; an async context manager that ends all of them, last started first."""

    def __init__(self, folder: Path) -> None:
        """Their output goes to `folder`/NAME.log."""
        self._folder = folder
        self._running: list[Process] = []
        self._scratch = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A short name: the path of a Unix socket has 107 characters at most.
        self.scratch = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="epp-", ignore_cleanup_errors=True)))
        """For what children leave lying about when they are ended; gone with them."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Another Ctrl-C while this runs must not leave the rest running: it takes effect when all have ended.
        stopping = asyncio.create_task(self._stop_all())
        cancelled = False
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled and kind is None:
            raise asyncio.CancelledError

    async def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Process:
        """Start a command; it may not be ready yet."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *map(str, command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
            except OSError as problem:
                raise DemoError(f"{name}: cannot start {command[0]}: {problem.strerror or problem}") from None
        child = Process(name, process, log)
        self._running.append(child)
        return child

    async def wait_ready(self, child: Process, ready: Callable[[], Awaitable[T | None]], timeout_s: float) -> T:
        """The first answer of `ready` that is not None. Raises DemoError when the child ends or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (answer := await ready()) is None:
            child.check()
            if loop.time() > deadline:
                raise DemoError(f"{child.name} was not ready after {timeout_s:.0f} s; the end of {child.log}:\n{child.last_lines()}")
            await asyncio.sleep(READY_POLL_S)
        return answer

    async def during(self, work: Coroutine[None, None, T]) -> T:
        """Result of `work`. Raises DemoError as soon as any child ends, and cancels the work."""
        task = asyncio.create_task(work)
        tasks: list[asyncio.Task[T] | asyncio.Task[None]] = [task, *(asyncio.create_task(child.watch()) for child in self._running)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
            return task.result()
        finally:
            for unfinished in tasks:
                unfinished.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_all(self) -> None:
        with self._scratch:
            while self._running:
                await self._running.pop().stop()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the child, before it becomes the command: ask the kernel for SIGKILL when the demo is gone."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
