"""Two simulated pods that are quick, and a client."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from epp.simulator.config import FleetConfig
from epp.simulator.engine import EngineConfig, LatencyProfile
from epp.simulator.fleet import Fleet
from tests.unit.simulator.recording import build_model_folder

QUICK = LatencyProfile(step_ms=2, prefill_us_per_token=1, decode_us_per_request=0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded model, without weights."""
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def fleet(model_folder: Path) -> AsyncIterator[Fleet]:
    """Two started pods, one adapter."""
    fleet = Fleet(FleetConfig(model_path=model_folder, model="tiny", loras=["adapter-a"], pods=2, engine=EngineConfig(latency=QUICK)))
    await fleet.start()
    yield fleet
    await fleet.stop()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that fails rather than hangs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session
