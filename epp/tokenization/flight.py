"""Identical requests under way at the same time are answered by one piece of work.

A burst of the same long prompt is encoded, or sent to the render server, once. Who goes away does not take the work from the
others. Used by the backends, on the event loop.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from epp.tokenization.backend import Prompts


class SingleFlight:
    """Work under way, by what it is about."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[Prompts]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Prompts]]) -> Prompts:
        """The outcome of `work`, begun here or by an earlier call with the same key. Raises what it raises."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task)

    def _landed(self, key: Hashable, task: asyncio.Task[Prompts]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # looked at, in case nobody waits any more
