"""Whatever goes wrong in whatever order, with whatever version: when it is over the index holds what the engines hold."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.integration.kv_events.publisher import QUICK
from tests.integration.kv_faults.bench import Bench
from tests.integration.kv_faults.versions import VERSIONS, fleet

FAULTS: list[dict[str, object]] = [
    {"drop": {"share": 0.3}},
    {"drop": {"next": 5}},
    {"drop": {"every": 4, "ring": "forgets"}},
    {"delay": {"share": 0.3, "seconds": 0.03}},
    {"delay": {"every": 3, "seconds": 0.03, "in_order": False}},
    {"duplicate": {"share": 0.5, "extra": 3}},
    {"drop": {"share": 0.2}, "delay": {"share": 0.5, "seconds": 0.02}, "duplicate": {"share": 0.2}},
    {"silence": "publisher"},
]


@pytest.mark.parametrize("seed", range(10))
async def test_anything_goes_and_comes_right(make_bench: Callable[..., Bench], seed: int) -> None:
    """The last reset of the cache ends what no replay can tell any more."""
    bench = make_bench(replace(VERSIONS[seed % len(VERSIONS)], seed=seed), fleet("neighbour"), timing=replace(QUICK, check_s=0.2))
    await bench.start()
    rng = random.Random(seed)
    for _ in range(12):
        await bench.go_wrong(**rng.choice(FAULTS))
        await bench.serve(rng.randrange(1, 12))
        match rng.randrange(5):
            case 0:
                await bench.restart(rng.choice((0.0, 0.1)))
            case 1:
                await bench.call("POST", "/reset_prefix_cache")
            case 2:
                await bench.call("POST", "/sleep?level=1")
                await bench.call("POST", "/wake_up")
            case 3:
                await bench.call("POST", "/disconnect")
    await bench.recover()
    await bench.call("POST", "/reset_prefix_cache")
    await bench.serve(5)
    await bench.becomes_right()
