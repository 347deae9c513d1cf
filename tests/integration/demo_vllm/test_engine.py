"""The client of a real engine, against a server that behaves as vLLM's was seen to."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from epp.demo.processes import DemoError
from epp.demo.vllm import engine as engine_module
from epp.demo.vllm.counters import Counters
from epp.demo.vllm.engine import Engine, Ports


class FakeVllm:
    """Clears its cache at the second time of asking, and counts a request only when its page is read again after the answer."""

    def __init__(self) -> None:
        self.resets = 0
        self.answered = 0
        self.counted = 0
        self.page: str | None = None
        """Instead of the real one."""
        self.busy = False

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.add_routes(
            [
                web.post("/reset_prefix_cache", self._reset),
                web.post("/v1/completions", self._complete),
                web.get("/metrics", self._metrics),
            ]
        )
        return app

    async def _reset(self, _: web.Request) -> web.Response:
        self.resets += 1
        return web.json_response({"success": self.resets > 1 and not self.busy})

    async def _complete(self, _: web.Request) -> web.Response:
        self.answered += 1
        return web.json_response({})

    async def _metrics(self, _: web.Request) -> web.Response:
        counted, self.counted = self.counted, self.answered
        page = f"vllm:request_success_total {counted}\nvllm:prefix_cache_queries_total {counted * 10}\nvllm:prefix_cache_hits_total 0\n"
        return web.Response(text=page if self.page is None else self.page)


@pytest.fixture
async def vllm() -> AsyncIterator[tuple[FakeVllm, Engine]]:
    """A running fake and its client."""
    fake = FakeVllm()
    runner = web.AppRunner(fake.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        yield fake, Engine("vllm-0", Ports(port, 1, 2), session)
    await runner.cleanup()


async def test_emptying_insists_and_lets_the_engine_take_a_step(vllm: tuple[FakeVllm, Engine]) -> None:
    """The cache is clear, the event that says so has left, and the request made for it is in the counters returned."""
    fake, engine = vllm
    assert await engine.empty() == Counters(requests=1, prompt_tokens=10, hit_tokens=0)
    assert (fake.resets, fake.answered) == (2, 1)


async def test_an_engine_that_never_gets_idle_is_an_error(vllm: tuple[FakeVllm, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that were not cleared would flatter the next mode."""
    fake, engine = vllm
    fake.busy = True
    monkeypatch.setattr(engine_module, "SETTLE_TIMEOUT_S", 0.0)
    with pytest.raises(DemoError, match="vllm-0 does not clear its prefix cache"):
        await engine.empty()


async def test_requests_it_never_counts_are_left_to_the_verdict(vllm: tuple[FakeVllm, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """After time enough, the counters are what they are."""
    _, engine = vllm
    monkeypatch.setattr(engine_module, "SETTLE_TIMEOUT_S", 0.0)
    assert (await engine.counted(7)).requests == 0


async def test_a_page_of_something_else_is_named(vllm: tuple[FakeVllm, Engine]) -> None:
    """The message says where and what is missing."""
    fake, engine = vllm
    fake.page = "up 1\n"
    with pytest.raises(DemoError, match=r"/metrics has no vllm:prefix_cache_hits_total: is this vLLM 0\.32\?"):
        await engine.counters()


async def test_an_engine_that_is_gone_is_an_error_without_a_trace() -> None:
    """Also a test that it is not healthy."""
    async with aiohttp.ClientSession() as session:
        engine = Engine("vllm-0", Ports(1, 2, 3), session)
        assert not await engine.healthy()
        with pytest.raises(DemoError, match="vllm-0: GET http"):
            await engine.counters()
