"""Waiting for the state of others, who set no event we could wait for: other processes, other threads, sockets."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")

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


async def awaited(value: _T | Awaitable[_T]) -> _T:
    """The value, or what it becomes: for what is there at once unless it takes time."""
    return await value if inspect.isawaitable(value) else value
