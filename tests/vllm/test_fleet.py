"""Two engines behind Envoy and epp: prefixes are found where they are, through resets, sleep, eviction, restarts and kill -9.

The witnesses are the engines: their counters, what their answers say was cached, the token ids they made; and the tests' own model of a
cache. The tests share one fleet and come in this order; the last one kills an engine.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from epp.demo.vllm.engine import Engine
from epp.domain import TokenState
from epp.testing import bootstrap
from epp.testing.envoy import EnvoyProcess
from epp.testing.waiting import eventually
from epp.tokenization import RenderBackend, Tokenization
from tests.vllm.cache_model import CacheModel
from tests.vllm.engines import ENGINES, model_folder
from tests.vllm.fleet import CHAT, Answer, Fleet, config, fleet, ports_of, unit, words
from tests.vllm.generated import Body
from tests.vllm.launch import MODEL, ports
from tests.vllm.test_generated import tokenized

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK_SIZE = 32
BLOCKS = 512
"""Of one engine: 16,000 tokens, so that it evicts when a test wants it to, and not before."""
FAMILIES = 25
COMPLETIONS = "/v1/completions"
PATIENCE_S = 5.0
"""Of a client that tries again, until it is answered."""
A, B = "vllm-a", "vllm-b"
FLAGS = (f"--num-gpu-blocks-override={BLOCKS}",)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Both up, their caches empty."""
    folder = tmp_path_factory.mktemp("fleet")
    model = model_folder(ENGINES[0], folder / "model")
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        units = [unit(name, ports(), model, http, BLOCK_SIZE, *FLAGS) for name in (A, B)]
        async with fleet(folder, units, http, config(folder, model, BLOCK_SIZE)) as running:
            yield running


def texts(seed: int, count: int, length: int = 220) -> list[str]:
    """System prompts of 300 tokens that have nothing in common."""
    rng = random.Random(seed)
    return [words(rng, length) for _ in range(count)]


async def play(live: Fleet, families: Sequence[str], *at_once: int, url: str = "") -> list[Answer]:
    """Rounds of all families, each in order, with a question of its own each time, so many `at_once` in each round."""
    answers: list[Answer] = []
    for number, limit in enumerate(at_once):
        free = asyncio.Semaphore(limit)

        async def ask(text: str, question: str, free: asyncio.Semaphore = free) -> Answer:
            async with free:
                return await live.chat(text, question, url=url)

        questions = [f"Question {number} of {i}: what now?" for i in range(len(families))]
        answers += await asyncio.gather(*map(ask, families, questions))
    assert {answer.status for answer in answers} == {200}
    return answers


async def emptied(engines: Sequence[Engine]) -> int:
    """Hit tokens counted so far, caches empty."""
    return sum([(await engine.empty()).hit_tokens for engine in engines])


async def counted(engines: Sequence[Engine]) -> int:
    """Hit tokens counted so far."""
    return sum([(await engine.counters()).hit_tokens for engine in engines])


def expected(answers: Sequence[Answer]) -> int:
    """Hit tokens of one cache that never forgets, which all requests share."""
    cache, total = CacheModel(BLOCK_SIZE), 0
    for answer in answers:
        total += cache.hit_tokens(answer.prompt)
        cache.store(answer.computed)
    return total


async def test_families_land_where_their_prefix_is(live: Fleet, figure: Callable[[str], None]) -> None:
    """Of the hits one cache could give, two engines behind epp give 95 %, neither with more than 65 % of the requests; round robin 65 % at most."""
    engines = [one.engine for one in live.units]
    families = texts(1, FAMILIES)
    async with EnvoyProcess(bootstrap.round_robin(listener=0, admin=0, endpoints=ports_of(live.units), tell_endpoint=True)) as plain:
        before = await emptied(engines)
        # One at a time: with an odd number of families each of them then meets both engines.
        answers = await play(live, families, 1, 1, 1, url=f"http://127.0.0.1:{plain.port}")
        round_robin = (await counted(engines) - before) / expected(answers)
    before = await emptied(engines)
    for name in (A, B):
        await live.holds(name, 0, 4)  # what was emptied is known; an engine on a busy machine tells of it late
    # New families one at a time as well: where an engine that stands still for a moment gets none, as it should, shares mean nothing.
    answers = await play(live, families, 1, 4, 4)
    precise = (await counted(engines) - before) / expected(answers)
    share = max(Counter(answer.engine for answer in answers).values()) / len(answers)
    figure(f"hit tokens / expected: precise {precise:.3f}, round robin {round_robin:.3f}; busier engine {share:.0%} of the requests")
    assert precise >= 0.95
    assert share <= 0.65
    assert round_robin <= 0.65
    assert await live.wrong_predictions(answers) == []
    assert await live.all_confirmed()


async def test_a_new_epp_knows_what_engines_hold(live: Fleet) -> None:
    """From its first request on, since it has asked every engine for its past, and said how far it got."""
    families = texts(2, 6)
    before = await play(live, families, 1)
    await live.restart_picker()
    assert "2 of 2 endpoints have told what they hold" in live.picker.log()
    answers = await play(live, families, 1)
    assert [answer.engine for answer in answers] == [answer.engine for answer in before]
    assert all(answer.cached > 250 for answer in answers)
    assert await live.wrong_predictions(answers) == []
    assert await live.all_confirmed()


@pytest.mark.parametrize("named", [{"model": None}, {"model": ""}], ids=["no model", "an empty name"])
async def test_a_request_that_names_no_model_is_the_base_model_s(live: Fleet, named: dict[str, Any]) -> None:
    """vLLM answers it so, and it finds what the model's other requests left there, as epp foresaw."""
    (text,) = texts(9, 1)
    first = await live.chat(text)
    unnamed = await live.chat(text, **named)
    assert (unnamed.status, unnamed.engine, unnamed.prompt) == (200, first.engine, first.prompt)
    assert unnamed.cached > 250
    assert await live.wrong_predictions([first, unnamed]) == []
    async with live.http.post(live.url + COMPLETIONS, json={"prompt": text, "max_tokens": 1}) as response:
        assert (response.status, (await response.json())["model"]) == (200, MODEL)
    live.predictions += 1
    assert await live.all_confirmed()


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 0}, {"echo": True}], ids=["logprobs of the prompt", "an echo"])
async def test_prompts_that_are_computed_anew_are_credited_nowhere(live: Fleet, fields: dict[str, Any]) -> None:
    """The engine finds nothing for them whatever it holds, and holds it afterwards as before."""
    (text,) = texts(10, 1)
    first = await live.chat(text)
    anew = await live.chat(text, **fields)
    assert (anew.status, anew.cached, set((await live.credits(anew.id)).values())) == (200, 0, {0})
    again = await live.chat(text)
    assert again.cached > 250
    assert await live.wrong_predictions([first, anew, again]) == []
    assert await live.all_confirmed()


async def test_a_reset_cache_is_known_after_the_engine_s_next_request(live: Fleet) -> None:
    """vLLM says so with the first step that follows, and not before."""
    (text,) = texts(3, 1)
    first = await live.chat(text)
    again = await live.chat(text)
    assert (again.engine, (await live.credits(again.id))[first.engine]) == (first.engine, again.cached)
    assert again.cached > 250
    await live.post(first.engine, "/reset_prefix_cache")
    await live.chat("", "short", url=live.direct(first.engine))
    await live.holds(first.engine, 0)
    after = await live.chat(text)
    assert (await live.credits(after.id))[first.engine] == 0
    assert after.cached == 0
    assert await live.all_confirmed()


async def test_a_sleeping_engine_holds_nothing(live: Fleet) -> None:
    """Known from its metrics, while it says nothing; what it computes after it woke up is known again."""
    (text,) = texts(4, 1)
    first = await live.chat(text)

    await live.holds(first.engine, 1, BLOCKS)
    await live.post(first.engine, "/sleep?level=1")
    await live.holds(first.engine, 0)
    await live.post(first.engine, "/wake_up")
    for _ in range(2):
        answer = await live.chat(text, url=live.direct(first.engine))
    assert answer.cached > 250
    live.held[first.engine] = held = CacheModel(BLOCK_SIZE)
    held.store(answer.computed)
    await live.knows(first.engine)
    through = await live.chat(text)
    assert (through.engine, through.cached) == (first.engine, answer.cached)
    assert await live.wrong_predictions([through]) == []
    assert await live.all_confirmed()


USER = {"role": "user", "content": "Who wrote Dune?"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "system", "content": "be brief"}, USER]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}, USER]}),
        (
            CHAT,
            {"messages": [USER], "reasoning_effort": "low", "chat_template_kwargs": {"x": 1}, "documents": [{"title": "a", "text": "b"}]},
        ),
        (
            CHAT,
            {
                "messages": [USER, {"role": "assistant", "content": "So far"}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
        ),
        (CHAT, {"messages": [USER], "add_special_tokens": True, "cache_salt": "s"}),
        (COMPLETIONS, {"prompt": "日本語 and 😀"}),
        (COMPLETIONS, {"prompt": ["one", "two"], "add_special_tokens": False}),
        (COMPLETIONS, {"prompt": [5, 6, 7]}),
    ],
)
async def test_an_engine_that_does_not_render_is_asked_to_tokenize(live: Fleet, path: str, body: Body) -> None:
    """Mode auto, and an engine without --enable-scale-out: the ids are those the engine then computes with."""
    asked = {"model": MODEL, "max_tokens": 1, **body}
    tokenization = Tokenization(MODEL, RenderBackend(live.direct(A), MODEL, mode="auto"))
    await tokenization.start()
    try:
        ours = await tokenized(tokenization, path, asked)
    finally:
        await tokenization.close()
    async with live.http.post(live.direct(A) + path, json={**asked, "return_token_ids": True}) as response:
        said = await response.json()
    theirs = [choice.get("prompt_token_ids") or said["prompt_token_ids"] for choice in said["choices"]]
    assert (ours.state, [list(ids) for ids in ours.prompts]) == (TokenState.EXACT, theirs)


async def test_evicted_prefixes_are_not_credited(live: Fleet) -> None:
    """Each engine computes more than it holds, past epp: the oldest prefixes are gone, the newest there, and both are known."""
    # A third more than it holds: which of the next go is a matter of how its requests overlapped.
    families = {A: texts(5, 72), B: texts(6, 72)}
    for name, own in families.items():
        computed = await play(live, own, 4, url=live.direct(name))
        assert sum(len(answer.prompt) for answer in computed) > BLOCKS * BLOCK_SIZE
        await live.holds(name, BLOCKS - 16, BLOCKS - 1)  # vLLM keeps one for itself, and some are not full
    old = await play(live, [*families[A][:5], *families[B][:5]], 1)
    assert [max((await live.credits(answer.id)).values()) for answer in old] == [0] * 10
    new = await play(live, [*families[A][-5:], *families[B][-5:]], 1)
    assert [answer.engine for answer in new] == [A] * 5 + [B] * 5
    assert min(answer.cached for answer in new) > 250
    assert await live.wrong_predictions([*old, *new]) == []
    assert await live.all_confirmed()
    assert "are not those its requests were expected to fill" not in live.picker.log()


async def test_a_killed_engine_is_credited_with_nothing_it_lost(live: Fleet, figure: Callable[[str], None]) -> None:
    """kill -9 under traffic: 5 s later no decision believes in a block that the new process has not computed itself."""
    await emptied([one.engine for one in live.units])
    families = texts(7, 12)
    warm = await play(live, families, 2, 2)
    lost = live.unit(B)
    assert B in {answer.engine for answer in warm}
    answers: list[Answer] = []
    over = asyncio.Event()

    async def traffic() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            async with asyncio.timeout(PATIENCE_S):
                while True:  # a client that has no answer tries again
                    answers.append(await live.chat(families[number % len(families)], f"Question {number}"))
                    await live.ended(answers[-1].id)
                    if answers[-1].status == 200:
                        break

    client = asyncio.create_task(traffic())
    lost.kill()
    killed = time.time()
    await lost.start(live.processes)
    await lost.ready(live.processes)
    await eventually(lambda: "default/vllm-b takes connections again" in live.picker.log())
    # The families it held live elsewhere by now: some that nobody knows find it.
    fresh = texts(8, 6)
    news = [await live.chat(text) for text in fresh]
    over.set()
    await client
    news += [await live.chat(text) for text in fresh]
    assert {answer.status for answer in news} == {200}
    figure(f"{len(answers)} requests in the time of a restart, of which {sum(answer.status != 200 for answer in answers)} failed")
    choices = await live.choices(*(answer.id for answer in (*answers, *news)))
    new = CacheModel(BLOCK_SIZE)
    wrong, passed_over = [], 0
    by_id = {answer.id: answer for answer in (*answers, *news)}
    for choice in sorted(choices.values(), key=lambda choice: choice.decided):
        answer = by_id.get(choice.request_id)
        if answer is None or choice.decided < killed:
            continue
        credited = next((candidate.matched_tokens for candidate in choice.candidates if candidate.pod == B), None)
        if credited is None:
            passed_over += 1
            continue
        if choice.decided > killed + 5 and credited > new.hit_tokens(answer.prompt):
            wrong.append((choice.decided - killed, credited, new.hit_tokens(answer.prompt), answer.id, answer.status))
        if answer.engine == B and answer.status == 200:
            new.store(answer.computed)
    assert wrong == []
    assert len(new)
    # It took no connections, which epp noticed by itself, and did again.
    assert passed_over
    assert "default/vllm-b takes no connections" in live.picker.log()
    await eventually(lambda: "KV events of default/vllm-b, rank 0: live" in live.picker.log().rsplit("lost", 1)[-1])
