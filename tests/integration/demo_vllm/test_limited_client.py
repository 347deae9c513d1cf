"""A workload that limits its open conversations is played in that many at a time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web

from epp.demo.client import Client
from epp.demo.workload import QUICK, generate

ANSWER = b"".join(
    f"data: {line}\n\n".encode()
    for line in (
        '{"choices":[{"delta":{"content":"Yes."}}]}',
        '{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}',
        "[DONE]",
    )
)


@pytest.fixture
async def pairing_server() -> AsyncIterator[str]:
    """The address of a server that answers only two requests together."""
    pair = asyncio.Barrier(2)

    async def answer(_: web.Request) -> web.Response:
        await pair.wait()
        return web.Response(body=ANSWER, content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_as_many_conversations_as_allowed_are_open(pairing_server: str) -> None:
    """Two at a time, neither more nor fewer: each begins when another has ended."""
    workload = generate(1, replace(QUICK, conversations=6, span_s=0.0, turns=(1, 1), at_once=2))
    played = await Client(pairing_server, "m", "test", lambda _: None).play(workload)
    assert [request.error for request in played] == [None] * 6
    assert all(sum(other.sent <= one.sent < other.ended for other in played) <= 2 for one in played)
