"""The fixture every test of the server uses."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.integration.server.rig import Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A started server and a channel to it."""
    rig = Rig()
    await rig.server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.server.port}") as rig.channel:
            yield rig
    finally:
        await rig.server.stop(0)
