"""epp itself as a child process, for tests that need the real thing: started with flags, ready when its health says so."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import grpc.aio

from epp._proto import health_pb2
from epp.errors import EppError

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

LISTENING_PORTS = (15_000, 32_768)


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody uses now; all different.

    Below those the system gives to outgoing connections: another process's would take them before they are used, or while what
    listens there restarts.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            port = random.randrange(*LISTENING_PORTS)  # noqa: S311  # guards nothing
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


async def is_serving(health_port: int, service: str = "") -> bool:
    """Whether the picker whose health port this is says SERVING of the service; "" is the picker as a whole."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{health_port}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class PickerProcess:
    """One running epp: `async with PickerProcess(["--config-text=..."]) as picker: ... picker.grpc_port`."""

    def __init__(self, flags: Sequence[str], *, started: str = "", command: Sequence[str] = (sys.executable, "-m", "epp")) -> None:
        """`flags` stand above plaintext and no drain, not above the ports. It has started once the health service `started` is SERVING.

        `command`: another epp than this one.
        """
        self._command = command
        self._flags = flags
        self._started = started
        self.grpc_port, self.health_port, self.metrics_port = free_ports(3)
        self._process: asyncio.subprocess.Process | None = None
        self._log: Path | None = None
        self._exit = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epp-"))) / "log"
            stack.push_async_callback(self._stop)
            await self._start(self._log)
            self._exit = stack.pop_all()
        return self

    async def restart(self) -> None:
        """Start again what has ended, with the same flags and ports; ready."""
        assert self._process is not None
        assert self._process.returncode is not None
        assert self._log is not None
        await self._start(self._log)

    async def _start(self, log_file: Path) -> None:
        with log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                "--secure-serving=false",
                "--drain-timeout=0s",
                *self._flags,
                f"--grpc-port={self.grpc_port}",
                f"--grpc-health-port={self.health_port}",
                f"--metrics-port={self.metrics_port}",
                stdout=log,
                stderr=log,
            )
        await self._wait_ready()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._exit.aclose()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it wrote so far."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    async def metrics(self) -> dict[str, float]:
        """Samples of its /metrics by name and labels, as they stand on the page."""
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.metrics_port}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line and line[0] != "#")}

    async def kill(self) -> None:
        """kill -9."""
        await self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> asyncio.Task[int]:
        """Send a signal, if it still runs; the task ends with the process and has its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
        return asyncio.create_task(self._process.wait())

    async def _stop(self) -> None:
        """Politely, then not."""
        if self._process is None:
            return
        stopped = self.signal(signal.SIGINT)
        try:
            await asyncio.wait_for(asyncio.shield(stopped), STOP_TIMEOUT_S)
        except TimeoutError:
            await self.signal(signal.SIGKILL)
            await stopped

    async def _wait_ready(self) -> None:
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                while self._process.returncode is None:
                    if await is_serving(self.health_port, self._started):
                        return
                    await asyncio.sleep(0.05)
        raise EppError(f"epp did not get ready; it wrote:\n{self.log()}")
