"""A load generator for HTTP/1.1 that costs little: some connections, each sending its next request when its answer is whole.

Knows just enough of HTTP to tell that an answer is a 200 and where it ends. Anything else ends the run with an error: a figure
from requests that failed is worth nothing. Used on one event loop.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, cast

from bench.http1 import BodyEnd, length_of
from epp.errors import EppError

CONNECTIONS = 32
DRAIN_TIMEOUT_S = 10.0


class BenchError(EppError):
    """Something did not run; `str()` says what."""


def request(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST of a chat body as it goes on the wire."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{lines}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """`async with Load(port, requests) as load:` keeps the port of 127.0.0.1 busy; `answers` counts."""

    def __init__(self, port: int, requests: Sequence[bytes], *, connections: int = CONNECTIONS) -> None:
        self._port = port
        self._requests = requests
        self._count = connections
        self._connections: list[_Connection] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has an exception as soon as anything but a 200 came."""
        self.answers = 0
        self.latencies: list[float] = []
        """Seconds from the end of a request to the end of its answer."""
        self.stopping = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for i in range(self._count):
            turns = itertools.cycle([*self._requests[i % len(self._requests) :], *self._requests[: i % len(self._requests)]])
            connection = _Connection(self, turns)
            self._connections.append(connection)
            try:
                await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", self._port)  # type: ignore[misc]  # mypy does not infer lambdas with defaults
            except OSError as error:
                raise BenchError(f"nobody listens on port {self._port}: {error}") from None
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let the answers under way come, then close."""
        self.stopping = True
        try:
            if kind is None:
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await asyncio.gather(*(connection.idle.wait() for connection in self._connections))
        except TimeoutError:
            raise BenchError(f"answers did not come within {DRAIN_TIMEOUT_S:g} s") from None
        finally:
            for connection in self._connections:
                connection.close()

    async def during(self, seconds: float) -> None:
        """Wait. Raises BenchError as soon as anything failed."""
        await asyncio.wait((self.failed,), timeout=seconds)
        if self.failed.done():
            self.failed.result()

    def fail(self, problem: str) -> None:
        """Something else than a 200 came."""
        if not self.failed.done() and not self.stopping:
            self.failed.set_exception(BenchError(problem))


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load, turns: Iterator[bytes]) -> None:
        self._load = load
        self._turns = turns
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._body: BodyEnd | None = None
        """None: the head is not whole."""
        self._sent_at = 0.0
        self.idle = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._turns))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.idle.set()
        self._load.fail("Envoy closed a connection")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._body is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._head.startswith(b"HTTP/1.1 200"):
                self._load.fail(f"not a 200 but: {self._head[:300].decode(errors='replace')}")
                return
            self._body = BodyEnd(length_of(self._head[:end]))
            data = self._head[end + 4 :]
            self._head = b""
        if self._body.reached(data):
            self._answered()

    def _answered(self) -> None:
        self._body = None
        self._load.answers += 1
        now = time.perf_counter()
        self._load.latencies.append(now - self._sent_at)
        self._sent_at = now
        if self._load.stopping or self._transport is None:
            self.idle.set()
        else:
            self._transport.write(next(self._turns))
