"""A rig, and publishers that are stopped after the test."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.integration.kv_events.publisher import Publisher, Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.source.stop()


@pytest.fixture
async def publish() -> AsyncIterator[Callable[..., Publisher]]:
    """Starts publishers."""
    started: list[Publisher] = []

    def start(**options: object) -> Publisher:
        started.append(Publisher(**options))  # type: ignore[arg-type]  # passed through
        return started[-1]

    yield start
    for publisher in started:
        await publisher.stop()
