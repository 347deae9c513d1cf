"""A stand-in for model servers that tells what arrived: for tests of the way there, not of models (that is epp.simulator).

One process-local aiohttp server per endpoint. Reads chunked bodies, as Envoy sends them in FULL_DUPLEX_STREAMED. A request
with the header STREAM gets a stream of that many server-sent events: the first at once, the rest when `release` is set.
"""

import asyncio
import hashlib
from types import TracebackType
from typing import Self

from aiohttp import web

from epp import names

STREAM = "x-test-stream"


class ModelServer:
    """One endpoint on a free port of 127.0.0.1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.requests = 0
        self.release = asyncio.Event()
        """Lets streamed answers go on."""
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
        self.release.set()
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def host_port(self) -> str:
        """ "ip:port"."""
        return f"127.0.0.1:{self.port}"

    @staticmethod
    def event(number: int) -> bytes:
        """The server-sent event of a streamed answer."""
        return b'data: {"n": %d, "text": "some words of an answer"}\n\n' % number

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        digest, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            size += len(chunk)
        if STREAM in request.headers:
            return await self._stream(request, int(request.headers[STREAM]))
        seen = {
            "server": self.host_port,
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "size": size,
            "sha256": digest.hexdigest(),
        }
        return web.json_response(seen, headers={names.INFERENCE_POD: self.name})

    async def _stream(self, request: web.Request, events: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", names.INFERENCE_POD: self.name})
        await response.prepare(request)
        for number in range(events):
            if number == 1:
                await self.release.wait()
            await response.write(self.event(number))
        await response.write_eof()
        return response
