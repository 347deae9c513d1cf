"""One request and what came back, whatever the version of HTTP; and the client's side of a plan, step by step. On one event loop."""

import asyncio
from abc import ABC, abstractmethod
from typing import Final

from tests.soak.plan import Kind, Plan

HUNG_AFTER_S: Final = 60.0
"""A hundred times what the slowest plan takes."""


class Exchange(ABC):
    """A request that has begun."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        """Done when the answer's headers are here, or nothing will come."""
        self.over: asyncio.Future[None] = loop.create_future()
        """Done when nothing will come any more."""
        self.status = 0
        """0: no answer."""
        self.body = bytearray()
        self.complete = False
        """The answer came to its end."""
        self.left = False
        """The client did not wait for it."""
        self.hung = False
        """It had to be ended by force."""
        self.broken = ""
        """How it ended where it came to no end."""

    def begins(self, status: int) -> None:
        """The answer's headers are here; more than once is no matter."""
        self.status = status
        if not self.begun.done():
            self.begun.set_result(None)

    def ends(self) -> None:
        """Nothing will come any more."""
        for future in (self.begun, self.over):
            if not future.done():
                future.set_result(None)

    @abstractmethod
    def send(self, data: bytes | memoryview, *, end: bool) -> None:
        """A piece of the body."""

    @abstractmethod
    def leave(self, *, reset: bool) -> None:
        """Break it off."""


async def perform(exchange: Exchange, plan: Plan) -> None:
    """Do what the plan says, until the exchange is over."""
    try:
        async with asyncio.timeout(HUNG_AFTER_S):
            await _perform(exchange, plan)
    except TimeoutError:
        exchange.hung = True
        exchange.leave(reset=True)


async def _perform(exchange: Exchange, plan: Plan) -> None:
    kind = plan.kind
    if kind is Kind.BEFORE_BODY:
        await asyncio.sleep(plan.pause_s)
        exchange.leave(reset=plan.reset)
        return
    if not await _send(exchange, plan):
        return
    if kind is Kind.IN_ANSWER:
        await exchange.begun
    if kind in (Kind.AFTER_BODY, Kind.IN_ANSWER, Kind.CONNECTION):
        await asyncio.wait((exchange.over,), timeout=plan.pause_s)
        if not exchange.over.done():
            exchange.leave(reset=plan.reset)
        return
    await exchange.over


async def _send(exchange: Exchange, plan: Plan) -> bool:
    """The body in its pieces; False: it was not sent to its end."""
    data, start, last = memoryview(plan.body.data), 0, len(plan.pieces) - 1
    for i, stop in enumerate(plan.pieces):
        if exchange.over.done():  # answered early
            return False
        if plan.kind is Kind.IN_BODY and i and i >= min(plan.leaves_after, last):
            exchange.leave(reset=plan.reset)
            return False
        exchange.send(data[start:stop], end=i == last)
        start = stop
        if i < last:
            await asyncio.sleep(plan.pause_s)
    return True
