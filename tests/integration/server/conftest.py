"""The fixture every test of the server uses: each runs on both transports."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.integration.server.rig import TRANSPORTS, Rig


@pytest.fixture(params=TRANSPORTS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A started server and a channel to it."""
    rig = Rig(request.param)
    await rig.server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.server.port}") as rig.channel:
            yield rig
    finally:
        await rig.server.stop(0)
