"""The render backend against an HTTP server that behaves well, badly, or not at all (spec/kv.md 4.9)."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from epp.domain import TokenizedRequest, TokenState
from epp.requests import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import RenderBackend, Tokenization

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RenderServer:
    """Keeps the bodies it got; answers as its `handler` says."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.handler: Handler
        self.port = 0
        self.released = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.got.append((request.path, await request.read()))
        return await self.handler(request)


@pytest.fixture
async def server() -> AsyncIterator[RenderServer]:
    """On a free port of the loopback."""
    server = RenderServer()
    application = web.Application()
    application.router.add_post("/{path:.*}", server.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    server.released.set()
    await runner.cleanup()


async def tokenized(port: int, path: str, timeout_s: float = 5.0, **body: object) -> TokenizedRequest:
    tokenization = Tokenization(
        "tiny", RenderBackend(f"http://127.0.0.1:{port}/", "served-name", timeout_s), known_loras=lambda: frozenset(("lora",))
    )
    await tokenization.start()
    try:
        return await awaited(tokenization.tokenize(RequestParsers().parse({":path": path}, json.dumps(body).encode())))
    finally:
        await tokenization.close()


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "z": 1, "a": {"y": 2, "b": 3}}


async def test_chats_are_rendered_by_the_server(server: RenderServer) -> None:
    """The body goes there in the client's order with the render server's name of the model; an adapter stays an adapter."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"request_id": "x", "token_ids": [5, 6], "features": None})

    server.handler = answer
    tokens = await tokenized(server.port, "/v1/chat/completions", model="lora", **CHAT)
    assert tokens == TokenizedRequest(TokenState.EXACT, [[5, 6]], lora="lora")
    assert server.got == [
        ("/v1/chat/completions/render", b'{"model":"served-name","messages":[{"role":"user","content":"hi"}],"z":1,"a":{"y":2,"b":3}}')
    ]


async def test_completions_have_one_rendering_a_prompt(server: RenderServer) -> None:
    """The order is that of the prompts."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response([{"token_ids": [1]}, {"token_ids": [2, 3]}])

    server.handler = answer
    tokens = await tokenized(server.port, "/v1/completions", model="tiny", prompt=["a", "b"])
    assert (tokens.state, tokens.prompts) == (TokenState.EXACT, [[1], [2, 3]])
    assert server.got[0][0] == "/v1/completions/render"


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (400, '{"error": "bad role"}', "engine_refuses"),
        (403, "no --enable-scale-out", "render_unavailable"),
        (500, "", "render_unavailable"),
        (200, "not json", "render_unavailable"),
        (200, '{"token_ids": "x"}', "render_unavailable"),
        (200, '{"token_ids": [1], "features": {"mm_hashes": {"image": ["h"]}}}', "multimodal"),
    ],
)
async def test_other_answers_leave_the_request_without_tokens(server: RenderServer, status: int, text: str, reason: str) -> None:
    """Each with the reason that fits."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    server.handler = answer
    tokens = await tokenized(server.port, "/v1/chat/completions", model="tiny", **CHAT)
    assert (tokens.state, tokens.reason) == (TokenState.ABSENT, reason)


async def test_a_slow_server_costs_the_timeout_and_no_more(server: RenderServer) -> None:
    """The request goes on without tokens."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await server.released.wait()
        return web.json_response({"token_ids": [1]})

    server.handler = answer
    tokens = await tokenized(server.port, "/v1/chat/completions", timeout_s=0.05, model="tiny", **CHAT)
    assert (tokens.state, tokens.reason) == (TokenState.ABSENT, "render_unavailable")


async def test_a_server_that_is_down_costs_the_tokens(unused_tcp_port: int) -> None:
    """Nobody listens there."""
    tokens = await tokenized(unused_tcp_port, "/v1/chat/completions", model="tiny", **CHAT)
    assert (tokens.state, tokens.reason) == (TokenState.ABSENT, "render_unavailable")
