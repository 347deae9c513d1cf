"""The render backend against an HTTP server that behaves well, badly, or not at all (spec/kv.md 4.9)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from epp.domain import MediaSpan, TokenizedRequest, TokenState
from epp.requests import RequestParsers
from epp.testing.waiting import awaited, eventually
from epp.tokenization import RenderBackend, Tokenization
from epp.tokenization.render import Mode
from tests.integration.tokenization.conftest import request_of

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


@asynccontextmanager
async def backend(port: int, mode: Mode = "render", now: Callable[[], float] = time.monotonic) -> AsyncIterator[Tokenization]:
    tokenization = Tokenization("tiny", RenderBackend(f"http://127.0.0.1:{port}", "served-name", 5.0, 5.0, mode, now))
    await tokenization.start()
    try:
        yield tokenization
    finally:
        await tokenization.close()


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


async def test_rendered_media_are_known_by_their_hashes(server: RenderServer) -> None:
    """So the whole prompt is exact; the pixels stay with the server."""

    async def answer(request: web.Request) -> web.StreamResponse:
        features = {"mm_hashes": {"image": ["h"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 2}]}, "kwargs_data": None}
        return web.json_response({"token_ids": [1, 9, 9, 2], "features": features})

    server.handler = answer
    parts = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
    tokens = await tokenized(server.port, "/v1/chat/completions", model="tiny", messages=parts)
    assert (tokens.state, tokens.prompts, tokens.media) == (TokenState.EXACT, [[1, 9, 9, 2]], [[MediaSpan("h", 1, 2)]])
    assert b'"mm_payload":"none"' in server.got[0][1]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_other_conversations_have_render_endpoints_of_their_own(server: RenderServer, path: str) -> None:
    """The body is for them to understand."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"token_ids": [7]})

    server.handler = answer
    async with backend(server.port) as tokenization:
        tokens = await awaited(
            tokenization.tokenize(request_of(path, {"model": "tiny", "input": "x", "messages": [{"role": "user", "content": "x"}]}))
        )
    assert (tokens.prompts, server.got[0][0]) == ([[7]], f"{path}/render")


@pytest.mark.parametrize(
    ("path", "body", "prompts"),
    [
        ("/inference/v1/generate", {"token_ids": [1, 2]}, [[1, 2]]),
        ("/v1/completions", {"prompt": [1, 2]}, [[1, 2]]),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, [[1, 2], [3]]),
    ],
)
async def test_ids_need_no_rendering(unused_tcp_port: int, path: str, body: dict[str, object], prompts: object) -> None:
    """They are known while the server is down."""
    async with backend(unused_tcp_port) as tokenization:
        tokens = await awaited(tokenization.tokenize(request_of(path, {"model": "tiny", **body})))
    assert (tokens.state, tokens.prompts) == (TokenState.EXACT, prompts)


async def test_identical_requests_are_rendered_once(server: RenderServer) -> None:
    """While the first is under way, and also if its client goes away; the next time they are asked again."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await server.released.wait()
        return web.json_response({"token_ids": [1]})

    server.handler = answer
    async with backend(server.port) as tokenization:
        request = request_of("/v1/chat/completions", {"model": "tiny", **CHAT})
        waiting = [asyncio.ensure_future(awaited(tokenization.tokenize(request))) for _ in range(5)]
        await eventually(lambda: len(server.got) == 1)
        waiting[0].cancel()
        server.released.set()
        assert [(await task).prompts for task in waiting[1:]] == [[[1]]] * 4
        assert len(server.got) == 1
        await awaited(tokenization.tokenize(request))
        assert len(server.got) == 2


async def test_a_server_that_does_not_render_is_asked_to_tokenize(server: RenderServer) -> None:
    """In mode auto; a minute later it is asked to render again."""
    clock = [1000.0]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"tokens": [1, 2]}) if request.path == "/tokenize" else web.Response(status=403)

    server.handler = answer
    async with backend(server.port, mode="auto", now=lambda: clock[0]) as tokenization:
        request = request_of("/v1/chat/completions", {"model": "tiny", **CHAT})
        for _ in range(2):
            assert (await awaited(tokenization.tokenize(request))).prompts == [[1, 2]]
        clock[0] += 61
        await awaited(tokenization.tokenize(request))
    asked = [path for path, _ in server.got]
    assert asked == ["/v1/chat/completions/render", "/tokenize", "/tokenize", "/v1/chat/completions/render", "/tokenize"]
