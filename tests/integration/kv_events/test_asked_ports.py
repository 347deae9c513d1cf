"""Engines that are asked where they publish: GET /kv_event_sources on a real HTTP server, events over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from epp.domain import Endpoint, EndpointId
from epp.sources.kv_asker import PATH, PortAsker
from epp.sources.kv_ports import EventPorts
from epp.testing.picker import free_ports
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import Notes, Publisher, Rig

PROMPT = list(range(16))
Publish = Callable[[], Publisher]


class Engine:
    """The HTTP side of an engine."""

    def __init__(self) -> None:
        self.answer: object = {}
        self.status = 200
        self.asked = 0
        self.port = free_ports(1)[0]
        self._runner: web.AppRunner | None = None

    def publishes(self, publisher: Publisher) -> None:
        """From now on it says so."""
        self.answer = {"0": {"endpoint": f"tcp://*:{publisher.port}", "replay_endpoint": f"tcp://*:{publisher.replay_port}"}}

    async def up(self) -> None:
        app = web.Application()
        app.router.add_get(PATH, self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def down(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(status=self.status, text=json.dumps(self.answer))


class AskingRig(Rig):
    """A source whose endpoints have no labels."""

    def __init__(self, *, bound: bool = False) -> None:
        notes = Notes()
        self.asker = PortAsker(notes, scheme="http", tls=True, bound=bound)
        super().__init__(notes=notes, ports=EventPorts(None, None, ask=self.asker.sync), lost=self.asker.ask_again)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    yield made
    await made.down()


@pytest.fixture
async def rig() -> AsyncIterator[AskingRig]:
    made = AskingRig()
    asking = asyncio.create_task(made.asker.run(made.source.told))
    yield made
    asking.cancel()
    await asyncio.wait((asking,))
    await made.source.stop()


def at(engine: Engine) -> Endpoint:
    return Endpoint(EndpointId("a"), "127.0.0.1", engine.port)


async def test_the_engine_tells_its_ports(rig: AskingRig, engine: Engine, publish: Publish) -> None:
    """Without any label or configuration: what it stored before is replayed, and the start waits for that."""
    pod = publish()
    await pod.store(PROMPT)
    engine.publishes(pod)
    await engine.up()
    rig.source.sync([at(engine)])
    await rig.settled()
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)
    assert engine.asked == 1
    assert rig.source.learnt().without_replay == []


async def test_an_engine_that_comes_up_later_is_asked_then(rig: AskingRig, engine: Engine, publish: Publish) -> None:
    """Nothing has to be restarted, and readiness did not wait for it."""
    pod = publish()
    engine.publishes(pod)
    rig.source.sync([at(engine)])
    await rig.settled()
    assert (rig.source.learnt().told, rig.source.learnt().unheard) == (0, ["a"])
    await engine.up()
    await eventually(lambda: rig.state("a") == "live")
    assert (rig.source.learnt().told, rig.source.learnt().unheard) == (1, [])
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)


async def test_an_engine_that_restarts_elsewhere_is_followed(rig: AskingRig, engine: Engine, publish: Publish) -> None:
    """Its stream breaks, it is asked again, and names another port."""
    old, new = publish(), publish()
    engine.publishes(old)
    await engine.up()
    rig.source.sync([at(engine)])
    await rig.settled()
    await old.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)

    engine.publishes(new)
    await old.stop()
    await eventually(lambda: engine.asked > 1)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 0)
    await new.store(PROMPT[:8])
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 8)


async def test_an_engine_without_events_is_named(rig: AskingRig, engine: Engine) -> None:
    """--kv-events-config was forgotten: one word about it instead of connections to nowhere."""
    await engine.up()
    rig.source.sync([at(engine)])
    await rig.settled()
    assert rig.notes.errors == [(EndpointId("a"), "engine_publishes_no_events")]


@pytest.mark.parametrize(("bound", "errors"), [(False, ["engine_connects_to_somebody_else"]), (True, [])])
async def test_an_engine_that_connects_is_heard_where_engines_may(engine: Engine, *, bound: bool, errors: list[str]) -> None:
    """Where they may not, one word about it: "tcp://0.0.0.0:5557" for "tcp://*:5557" is easily written."""
    rig = AskingRig(bound=bound)
    asking = asyncio.create_task(rig.asker.run(rig.source.told))
    engine.answer = {"0": {"endpoint": "tcp://0.0.0.0:5557"}}
    await engine.up()
    rig.source.sync([at(engine)])
    await rig.settled()
    assert [reason for _, reason in rig.notes.errors] == errors
    asking.cancel()
    await asyncio.wait((asking,))
    await rig.source.stop()


@pytest.mark.parametrize(("status", "answer", "errors"), [(404, {}, []), (200, ["a"], ["event_sources_answer"])])
async def test_an_engine_that_knows_no_such_question(
    rig: AskingRig, engine: Engine, status: int, answer: object, errors: list[str]
) -> None:
    """An older one: its events are looked for where convention has them."""
    engine.status, engine.answer = status, answer
    await engine.up()
    rig.source.sync([at(engine)])
    await eventually(lambda: rig.state("a") is not None)
    assert [reason for _, reason in rig.notes.errors] == errors
