"""Benches on one loaded model."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from epp.simulator.config import FleetConfig
from epp.simulator.engine import EngineConfig, LatencyProfile
from epp.simulator.fleet import load
from epp.simulator.model import ServedModel
from tests.integration.kv_faults.bench import Bench
from tests.unit.simulator.recording import build_model_folder

# So small that the traffic of a test evicts.
ENGINE = EngineConfig(num_blocks=80, latency=LatencyProfile(step_ms=1, prefill_us_per_token=0, decode_us_per_request=0))
CONFIG = FleetConfig(model_path=Path(), model="tiny", pods=2, max_model_len=1024, engine=ENGINE, dev_mode=True)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """The recorded model's tokenizer and template."""
    model = load(FleetConfig(model_path=build_model_folder(tmp_path_factory.mktemp("model")), model="tiny", max_model_len=1024))
    yield model
    model.close()


@pytest.fixture
async def make_bench(model: ServedModel) -> AsyncIterator[Callable[..., Bench]]:
    """Builds benches; they are taken down after the test."""
    made: list[Bench] = []

    def make(*configs: FleetConfig, **options: object) -> Bench:
        made.append(Bench(*(configs or (CONFIG,)), model=model, **options))  # type: ignore[arg-type]  # passed through
        return made[-1]

    yield make
    for bench in made:
        await bench.stop()


@pytest.fixture
async def bench(make_bench: Callable[..., Bench]) -> Bench:
    """Two pods that can be told to go wrong, and epp listening."""
    bench = make_bench()
    await bench.start()
    return bench
