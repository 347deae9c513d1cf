"""Waiting for the state of others, who set no event we could wait for: other processes, other threads, sockets."""

import asyncio
from collections.abc import Awaitable, Callable

DEADLINE_S = 20.0
"""Far beyond any sane delay; it only keeps a failure from hanging."""


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return as soon as the condition, plain or async, holds. Raises TimeoutError where it never does."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)
