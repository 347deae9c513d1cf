"""Engines that restart, fall silent, sleep or empty their cache: none is credited with what it no longer has."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import aiohttp
import pytest

from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK
from tests.integration.kv_faults.bench import Bench


@pytest.mark.parametrize("down_s", [0.0, 0.3])
async def test_a_restarted_engine_holds_nothing_of_old(bench: Bench, down_s: float) -> None:
    """Whether it was away for long or came back at once; what the new one computes is known."""
    await bench.serve(15)
    await bench.becomes_right()
    await bench.restart(down_s)
    await bench.becomes_right()
    assert not bench.pod.engine.pool.cached
    await bench.serve(15)
    await bench.becomes_right()
    assert bench.rig.state("pod-0") == "live"


async def test_without_a_replay_socket_a_refused_connection_tells(make_bench: Callable[..., Bench]) -> None:
    """The engine is away for longer than it takes to try again."""
    bench = make_bench(replay=False)
    await bench.start()
    await bench.all_heard()
    await bench.serve(15)
    await bench.becomes_right()
    await bench.restart(down_s=0.3)
    await bench.becomes_right()
    await bench.all_heard()
    await bench.serve(15)
    await bench.becomes_right()


async def test_without_a_replay_socket_the_first_batch_tells_of_a_quick_restart(make_bench: Callable[..., Bench]) -> None:
    """Its number is an old one, its time a new one."""
    bench = make_bench(replay=False)
    await bench.start()
    await bench.all_heard()
    await bench.serve(15)
    await bench.becomes_right()
    await bench.restart()

    async def told() -> bool:
        await bench.ask(bench.traffic.text(17))
        return not bench.credits_too_much()

    await eventually(told)


async def test_answers_are_cut_by_a_restart(bench: Bench) -> None:
    """Clients see what they would see of a process that dies."""
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 900, "ignore_eos": True}
    asking = asyncio.create_task(bench.call("POST", "/v1/completions", json=body))
    await eventually(lambda: bool(bench.pod.engine.running))
    await bench.restart()
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert not bench.pod.engine.running


async def test_a_host_that_hangs_is_taken_for_gone(make_bench: Callable[..., Bench]) -> None:
    """No connection is closed and none refused: unanswered pings tell. When it goes on, all it holds is known again."""
    bench = make_bench(timing=replace(QUICK, heartbeat_s=0.3, attempt_s=0.5))
    await bench.start()
    await bench.serve(10)
    await bench.becomes_right()
    await bench.go_wrong(silence="host")
    await eventually(lambda: bench.rig.state("pod-0") == "lost")
    await eventually(lambda: not bench.blocks_credited(0))
    await eventually(lambda: bench.is_right(1))
    await bench.recover()
    await bench.serve(3)
    await bench.becomes_right()


async def test_a_reset_cache_is_known_with_the_next_step(bench: Bench) -> None:
    """vLLM publishes nothing while it is idle, so until then nobody can know."""
    await bench.serve(10)
    await bench.becomes_right()
    assert await bench.call("POST", "/reset_prefix_cache") == (200, {"success": True})
    assert bench.credits_too_much()
    prompt = bench.traffic.text(50)
    assert await bench.ask(prompt) == 0
    await bench.becomes_right()
    assert bench.blocks_credited(0) == 3


@pytest.mark.parametrize("level", [1, 2])
async def test_an_engine_that_slept_has_lost_its_cache(bench: Bench, level: int) -> None:
    """Known with its first step after it woke up."""
    await bench.serve(10)
    await bench.call("POST", f"/sleep?level={level}")
    assert await bench.call("GET", "/is_sleeping") == (200, {"is_sleeping": True})
    await bench.call("POST", "/wake_up")
    await bench.serve(1)
    await bench.becomes_right()


async def test_an_engine_whose_publisher_died_is_learnt_anew_after_its_restart(bench: Bench) -> None:
    """Requests were served, and nobody could tell what became of the cache; the new process tells."""
    await bench.serve(10)
    await bench.becomes_right()
    await bench.go_wrong(silence="publisher")
    await bench.serve(20)
    await bench.restart()
    await bench.serve(5)
    await bench.becomes_right()
