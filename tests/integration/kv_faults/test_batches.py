"""Batches that are lost, late or told twice: afterwards the index holds what the engines hold, block by block."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from epp.simulator.publisher import PublisherConfig
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK
from tests.integration.kv_faults.bench import Bench
from tests.integration.kv_faults.conftest import CONFIG


@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"drop": {"next": 1}},
        {"drop": {"every": 3}},
        {"drop": {"share": 0.5}},
        {"delay": {"share": 0.3, "seconds": 0.05}},
        {"delay": {"share": 0.3, "seconds": 0.05, "in_order": False}},
        {"duplicate": {"share": 0.5, "extra": 2}},
        {"drop": {"share": 0.2}, "delay": {"share": 0.2, "seconds": 0.03, "in_order": False}, "duplicate": {"share": 0.3}},
    ],
    ids=["nothing", "drop one", "drop every third", "drop half", "delay", "overtake", "duplicate", "all at once"],
)
async def test_what_a_replay_can_tell_is_healed(bench: Bench, faults: dict[str, object]) -> None:
    """While evictions, decoded blocks and second copies go on; the neighbour notices nothing."""
    await bench.serve(3)
    await bench.go_wrong(**faults)
    await bench.serve(40)
    await bench.recover()
    await bench.becomes_right()
    if "drop" in faults:
        assert bench.rig.notes.gaps
    assert {name for name, _ in bench.rig.notes.gaps} <= {"pod-0"}
    assert not bench.rig.notes.errors


async def test_a_loss_that_nothing_follows_is_healed(make_bench: Callable[..., Bench]) -> None:
    """No number shows it; the check of idle streams finds it."""
    bench = make_bench(timing=replace(QUICK, check_s=0.2))
    await bench.start()
    await bench.serve(10)
    await bench.go_wrong(drop={"next": 100})
    await bench.serve(3, pods=[0])
    assert not bench.is_right()
    await bench.becomes_right()
    assert not bench.rig.notes.gaps


async def test_replies_without_the_topic_heal_as_well(make_bench: Callable[..., Bench]) -> None:
    """As engines before vLLM 0.26 send them."""
    bench = make_bench(replace(CONFIG, publisher=PublisherConfig(replay_frames=3)))
    await bench.start()
    await bench.serve(5)
    await bench.go_wrong(drop={"every": 2})
    await bench.serve(11)
    await bench.becomes_right()


async def test_what_no_replay_can_tell_is_not_guessed(bench: Bench) -> None:
    """Evictions may have been among it: the pod is not trusted with what it held before, and is learnt anew as it goes on."""
    await bench.serve(20)
    await bench.becomes_right()
    await bench.go_wrong(drop={"next": 8, "ring": "forgets"})
    await bench.serve(8, pods=[0])
    await bench.recover()
    after = bench.traffic.text(200)
    await bench.ask(after)
    await eventually(lambda: bench.credited(0, after) == 192)
    await eventually(lambda: not bench.credits_too_much())
    assert bench.rig.state("pod-0") == "partial"
    assert bench.is_right(1)


async def test_a_short_ring_that_moved_on_is_not_guessed(make_bench: Callable[..., Bench]) -> None:
    """The same with vLLM's own buffer_steps."""
    bench = make_bench(replace(CONFIG, publisher=PublisherConfig(buffer_steps=4)))
    await bench.start()
    await bench.serve(20)
    await bench.go_wrong(drop={"next": 12})
    await bench.serve(12, pods=[0])
    await bench.ask(bench.traffic.text(200))
    await eventually(lambda: bench.rig.state("pod-0") == "partial" and not bench.credits_too_much())
