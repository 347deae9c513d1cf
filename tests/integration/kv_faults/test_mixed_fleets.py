"""Engines of several versions and makes in one fleet: each is understood, block by block, whatever the neighbours say."""

from collections.abc import Callable

import pytest

from epp.simulator.config import FleetConfig
from epp.simulator.events import EventFormat
from epp.simulator.hashing import HashForm
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import Rig
from tests.integration.kv_faults.bench import Bench
from tests.integration.kv_faults.versions import VERSIONS, fleet


async def test_all_versions_in_one_fleet(make_bench: Callable[..., Bench]) -> None:
    """With evictions, decoded blocks and second copies."""
    bench = make_bench(*VERSIONS)
    await bench.start()
    await bench.serve(30)
    await bench.becomes_right()
    assert not bench.rig.notes.errors
    assert not bench.rig.notes.gaps
    prompt = bench.traffic.text(200)
    for pod in range(len(VERSIONS)):
        await bench.ask(prompt, pod=pod)
    await bench.becomes_right()
    assert [bench.credited(pod, prompt) for pod in range(len(VERSIONS))] == [192, 192, 192, 192, 192, 200, 192]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda config: config.pod_name)
async def test_each_version_is_healed(make_bench: Callable[..., Bench], version: FleetConfig) -> None:
    """Losses, a broken connection, a restart and an emptied cache, one after the other; the neighbour of the newest version notices nothing."""
    bench = make_bench(version, fleet("neighbour"))
    await bench.start()
    await bench.serve(5)
    await bench.go_wrong(drop={"every": 3}, duplicate={"every": 2})
    await bench.serve(8)
    await bench.recover()
    await bench.becomes_right()
    assert await bench.call("POST", "/disconnect") == (200, {"status": "disconnected"})
    await bench.serve(5)
    await bench.becomes_right()
    await bench.restart()
    await bench.becomes_right()
    await bench.serve(5)
    await bench.call("POST", "/reset_prefix_cache")
    await bench.serve(2)
    await bench.becomes_right()
    assert {name for name, _ in bench.rig.notes.gaps} <= {version.pod_name + "-0"}
    assert not bench.rig.notes.errors


async def test_a_version_that_is_updated(make_bench: Callable[..., Bench]) -> None:
    """A pod comes back as another version, with other blocks and hashes of another form: it is learnt from its first event on."""
    old, new = fleet("rolled", form=EventFormat.ARRAYS, hash_form=HashForm.BYTES, block_size=32), fleet("rolled", block_size=16)
    bench = make_bench(old, fleet("neighbour"))
    await bench.start()
    await bench.serve(10)
    await bench.becomes_right()
    await bench.replace(0, new)
    await bench.serve(10)
    await bench.becomes_right()
    assert not bench.rig.notes.errors


@pytest.mark.parametrize("topic", ["kv@{host}:{port}@{model}", "kv@{host}@{model}"])
async def test_engines_that_connect_to_a_picker_that_binds(make_bench: Callable[..., Bench], topic: str) -> None:
    """As KServe 0.17 configures it: the topic tells who speaks, with its port or without where an address has one pod; one dialled beside them is no other."""
    rig = Rig(bind="tcp://127.0.0.1:*")
    connects = fleet("connects", hash_form=HashForm.BYTES, connect=rig.source.bound_url, topic=topic)
    bench = make_bench(connects, *([fleet("dialled")] if "port" in topic else []), rig=rig)
    await bench.start()
    await bench.all_heard()
    await bench.serve(15)
    await bench.becomes_right()
    await bench.restart(down_s=0.1)
    await bench.all_heard()
    await bench.serve(5)
    await bench.becomes_right()


async def test_hits_that_are_announced_again_count_as_copies_until_the_cache_is_reset(make_bench: Callable[..., Bench]) -> None:
    """With kv_cache_report_mode=full a hit looks like a second copy, for which no removal ever comes; a reset ends that."""
    bench = make_bench(fleet("reports"))
    await bench.start()
    prompt = bench.traffic.text(129)
    await bench.ask(prompt)
    await bench.becomes_right()
    for _ in range(3):
        assert await bench.ask(prompt, vllm_xargs={"kv_cache_report_mode": "full"}) == 128
    for _ in range(20):
        await bench.ask(bench.traffic.text(100))
    assert (bench.held(0, prompt), bench.credited(0, prompt)) == (0, 128)
    await bench.call("POST", "/reset_prefix_cache")
    await bench.serve(1)
    await bench.becomes_right()


async def test_a_picker_that_heard_nothing_is_told_by_a_reported_hit(make_bench: Callable[..., Bench]) -> None:
    """Without a replay, a request that asks for the report makes its prefix known."""
    bench = make_bench(fleet("reports"), replay=False)
    await bench.start()
    await bench.go_wrong(drop={"next": 100})
    prompt = bench.traffic.text(129)
    await bench.ask(prompt)
    await bench.recover()

    async def told() -> bool:
        await bench.ask(prompt, vllm_xargs={"kv_cache_report_mode": "full"})
        return bench.credited(0, prompt) == 128

    await eventually(told)
