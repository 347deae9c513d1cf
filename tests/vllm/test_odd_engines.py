"""Engines of other kinds in one fleet: bytes hashes and larger blocks, adapters, and one that connects to epp.

"wide" names its blocks by bytes, cuts them larger and is asked where it publishes; "calling" connects to epp, which binds. Both know
the adapter "pirate", of which epp learns from their events alone. epp is there before they are.
"""

import random
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
import pytest_asyncio

from epp.testing.picker import free_ports
from epp.testing.waiting import eventually
from tests.vllm.adapter import RANK, write_adapter
from tests.vllm.cache_model import CacheModel
from tests.vllm.engines import ENGINES, model_folder
from tests.vllm.fleet import Answer, Fleet, config, fleet, unit, words
from tests.vllm.launch import MODEL, ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE, CALLING, PIRATE = "wide", "calling", "pirate"
SIZES = {WIDE: 128, CALLING: 32}
"""Tokens a block."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Both up."""
    folder = tmp_path_factory.mktemp("odd")
    model = model_folder(ENGINES[0], folder / "model")
    adapter = write_adapter(folder / PIRATE, seed=1)
    (bound,) = free_ports(1)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        flags = ("--enable-lora", "--max-lora-rank", str(RANK), "--lora-modules", f"{PIRATE}={adapter}")
        wide = unit(WIDE, ports(), model, http, SIZES[WIDE], *flags, VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES="0")
        at = ports()
        # No "*" in the endpoint: vLLM connects. By name, or epp would take its own address for the engine's.
        calls = f'{{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://localhost:{bound}", "topic": "kv@127.0.0.1:{at.http}@{MODEL}"}}'
        calling = unit(CALLING, at, model, http, SIZES[CALLING], *flags, "--kv-events-config", calls)
        for one in (wide, calling):
            one.labels = False
        configuration = config(folder, model, 32, bind=f"tcp://*:{bound}")
        async with fleet(folder, [wide, calling], http, configuration, picker_first=True) as running:
            assert "no KV events yet from default/calling, default/wide" in running.picker.log()
            await eventually(lambda: "KV events of default/wide, rank 0: live" in running.picker.log())
            yield running


@pytest.fixture
def text(request: pytest.FixtureRequest) -> str:
    """A system prompt of 300 tokens, another one for each test."""
    return words(random.Random(request.node.name), 220)


async def warmed(live: Fleet, name: str, text: str, **fields: str) -> Answer:
    """The engine has computed the chat, past epp, which knows by now."""
    answer = await live.chat(text, url=live.direct(name), **fields)
    await live.knows(name)
    return answer


async def test_an_adapter_is_learnt_from_an_engine_s_events(live: Fleet, text: str) -> None:
    """Before that epp does not know what the name means, and makes up no tokens; its blocks are not those of the base model."""
    unknown = await live.chat(text, model=PIRATE)
    live.predictions -= 1
    assert (unknown.status, set((await live.credits(unknown.id)).values())) == (200, {0})
    other = WIDE if unknown.engine == CALLING else CALLING
    await live.chat(text, url=live.direct(other), model=PIRATE)
    for name in (WIDE, CALLING):
        await live.knows(name)
    known = await live.chat(text, model=PIRATE)
    assert min((await live.credits(known.id)).values()) >= 256
    assert await live.wrong_predictions([known]) == []
    base = await live.chat(text)
    assert (set((await live.credits(base.id)).values()), base.cached) == ({0}, 0)


@pytest.mark.parametrize("name", [WIDE, CALLING])
async def test_what_an_engine_computed_past_epp_brings_it_the_next_request(live: Fleet, text: str, name: str) -> None:
    """Whatever its hashes, its block size, and who connects to whom."""
    first = await warmed(live, name, text)
    answer = await live.chat(text)
    assert answer.prompt == first.prompt
    held = CacheModel(SIZES[name])
    held.store(first.computed)
    assert await live.credits(answer.id) == {WIDE: 0, CALLING: 0} | {name: held.hit_tokens(answer.prompt)}
    assert (answer.engine, answer.cached) == (name, held.hit_tokens(answer.prompt))


@pytest.mark.parametrize("name", [WIDE, CALLING])
async def test_a_salt_keeps_prefixes_apart(live: Fleet, text: str, name: str) -> None:
    """The blocks are there for those who know it."""
    await warmed(live, name, text, cache_salt="a")
    others = [await live.chat(text, cache_salt="b"), await live.chat(text)]
    own = await live.chat(text, cache_salt="a")
    assert [set((await live.credits(answer.id)).values()) for answer in others] == [{0}, {0}]
    assert (own.engine, [answer.cached for answer in others]) == (name, [0, 0])
    assert own.cached >= 256
    assert await live.wrong_predictions([own]) == []


async def test_a_mixed_fleet_serves_families_from_its_caches(live: Fleet) -> None:
    """Base model and adapter, three rounds: each hit is as foreseen, and nothing that is stored is a surprise."""
    rng = random.Random(9)
    families = [(words(rng, 250), model) for model in (MODEL, PIRATE) for _ in range(5)]
    answers: list[Answer] = []
    for number in range(3):
        answers += [await live.chat(text, f"Question {number}?", model=model) for text, model in families]
    assert _hit_rounds(answers, len(families)) == [0, len(families), len(families)]
    assert await live.wrong_predictions(answers) == []
    assert await live.all_confirmed()
    log = live.picker.log()
    assert "are not those its requests were expected to fill" not in log
    assert "connects to somebody else" not in log


def _hit_rounds(answers: Sequence[Answer], count: int) -> list[int]:
    """Requests of each round that found most of their prompt cached."""
    rounds = [answers[begin : begin + count] for begin in range(0, len(answers), count)]
    return [sum(2 * answer.cached > len(answer.prompt) for answer in one) for one in rounds]
