"""A stand-in for model servers that tells what arrived: for tests of the way there, not of models (that is epp.simulator).

One process-local aiohttp server per endpoint. Reads chunked bodies, as Envoy sends them in FULL_DUPLEX_STREAMED. Answers with a
JSON object about the request; with the request's own body where it has the header ECHO; with a stream of server-sent events
where it has the header STREAM, whose value is their number. How far streams may go is set by the test (`allow`), not by time.
Used on one event loop.
"""

import asyncio
import contextlib
import hashlib
import math
from types import TracebackType
from typing import Self

from aiohttp import web

from epp import names

STREAM = "x-test-stream"
ECHO = "x-test-echo"


class ModelServer:
    """One endpoint on a free port of 127.0.0.1."""

    def __init__(self, name: str) -> None:
        """`name` goes into x-inference-pod of each answer."""
        self.name = name
        self.port = 0
        self.requests = 0
        """Requests whose body has arrived."""
        self._allowed: float = 1
        self._moved = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.allow()
        await self.die()

    async def die(self) -> None:
        """Let go of the port and of all connections, whatever is open."""
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def host_port(self) -> str:
        """The "ip:port" it listens on."""
        return f"127.0.0.1:{self.port}"

    @staticmethod
    def event(number: int) -> bytes:
        """The server-sent event of a streamed answer; the first is number 0."""
        return b'data: {"n": %d, "text": "some words of an answer"}\n\n' % number

    async def allow(self, events: float = math.inf) -> None:
        """Every streamed answer may be this many events long by now. 1 at first; with 0 not even its headers are sent."""
        async with self._moved:
            self._allowed = events
            self._moved.notify_all()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
        self.requests += 1
        headers = {names.INFERENCE_POD: self.name}
        if STREAM in request.headers:
            return await self._stream(request, int(request.headers[STREAM]), headers)
        if ECHO in request.headers:
            return web.Response(body=bytes(body), content_type="application/json", headers=headers)
        seen = {
            "server": self.host_port,
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return web.json_response(seen, headers=headers)

    async def _stream(self, request: web.Request, events: int, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
        # Clients of tests hang up in the middle of answers; that is their business.
        with contextlib.suppress(ConnectionResetError):
            await self._turn(0)
            await response.prepare(request)
            for number in range(events):
                await self._turn(number)
                await response.write(self.event(number))
            await response.write_eof()
        return response

    async def _turn(self, number: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: number < self._allowed)
