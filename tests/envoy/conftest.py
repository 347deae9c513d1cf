"""A real Envoy, a real epp and stand-in model servers, put together the way a user would.

Starting an epp takes seconds, so tests that neither break nor reconfigure it share one rig, on the session's event loop.
"""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.envoy.rig import MakeRig, Rig, build_rig

SHARED_SERVERS = 8
TRANSPORTS = ["fast", "grpc"]


@pytest.fixture
def make_rig(tmp_path: Path) -> MakeRig:
    """Rigs of a test's own."""
    return partial(build_rig, tmp_path)


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=TRANSPORTS)
async def shared_rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with build_rig(tmp_path_factory.mktemp("rig"), f"--transport={request.param}", servers=SHARED_SERVERS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def rig(shared_rig: Rig) -> AsyncIterator[Rig]:
    """The shared rig, as if it were new."""
    yield shared_rig
    await shared_rig.settle()
