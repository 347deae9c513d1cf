"""One simulated pod in real time: drives its engine step by step, hands tokens to waiting handlers, publishes events.

Runs on the event loop's thread; the engine has no other caller. `run` is one task for the life of the pod; handlers
call `submit`, read from the `Inbox` they gave it, and call `abort` when their client is gone.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from epp.simulator.config import PodEndpoint
from epp.simulator.engine import Engine, Output, Request
from epp.simulator.faults import FaultInjector
from epp.simulator.metrics import PodMetrics
from epp.simulator.publisher import EventPublisher


class Inbox:
    """Tokens of one HTTP request's prompts that its handler has not read yet. One reader."""

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._open = 0
        self._wanted: float = math.inf
        self._ready = asyncio.Event()

    def expect(self, answers: int) -> None:
        """So many answers will end here."""
        self._open = answers

    def deliver(self, output: Output) -> None:
        """Called by the pod."""
        self._outputs.append(output)
        self._open -= output.is_last
        if len(self._outputs) >= self._wanted or not self._open:
            self._ready.set()

    def cut(self) -> None:
        """No more answers come; what was said so far is all."""
        self._open = 0
        self._ready.set()

    async def take(self, at_least: float = math.inf) -> list[Output]:
        """All tokens since the last call, once there are `at_least` so many or every answer is over; empty after that."""
        if len(self._outputs) < at_least and self._open:
            self._wanted = at_least
            self._ready.clear()
            await self._ready.wait()
        outputs, self._outputs = self._outputs, []
        return outputs


@dataclass(slots=True)
class _Pending:
    """What the pod knows about a request in the engine."""

    inbox: Inbox
    arrived_at: float
    finish_reason: str


@dataclass(slots=True)
class Pod:
    """A named engine with its sockets and counters, from its start to its death."""

    name: str
    endpoint: PodEndpoint
    engine: Engine
    publisher: EventPublisher
    metrics: PodMetrics
    faults: FaultInjector
    flows: asyncio.Event
    """Cleared while the pod hangs."""
    sleep_level: int | None = None
    """As /sleep takes it; None: awake."""
    _pending: dict[Request, _Pending] = field(default_factory=dict)
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _between_steps: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, requests: Sequence[Request], reasons: Sequence[str], inbox: Inbox) -> None:
        """Queue the prompts of one HTTP request; `reasons` are their finish reasons, known in advance."""
        inbox.expect(len(requests))
        now = asyncio.get_running_loop().time()
        for request, reason in zip(requests, reasons, strict=True):
            self.engine.add(request)
            self._pending[request] = _Pending(inbox, now, reason)
        self._work.set()

    def abort(self, requests: Sequence[Request]) -> None:
        """Nobody wants these any more; requests that are over already are none of our business."""
        for request in requests:
            if self._pending.pop(request, None) is not None:
                self.metrics.finished["abort"] += 1
                self.engine.abort(request)

    async def sleep(self, level: int) -> None:
        """End what runs, take no further step, and from level 1 on lose the cache, of which the next step's events will tell."""
        self.sleep_level = self.metrics.sleep_level = level
        for pending in self._pending.values():
            pending.inbox.cut()
        self.abort(list(self._pending))
        await self._between_steps.wait()
        if level:
            self.engine.reset_prefix_cache()

    def wake_up(self) -> None:
        """Go on with what was asked meanwhile."""
        self.sleep_level = self.metrics.sleep_level = None
        self._work.set()

    async def run(self) -> None:
        """Step until cancelled. A step begins when the one before should have ended, so lateness does not add up."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self.flows.wait()
            step = self.engine.start_step() if self.sleep_level is None else None
            if step is None:
                self._between_steps.set()
                self._work.clear()
                await self._work.wait()
                due = loop.time()
                continue
            self._between_steps.clear()
            # Late by more than a step: the machine was away; do not hurry after it.
            due = max(due, loop.time() - step.duration_s) + step.duration_s
            await asyncio.sleep(due - loop.time())
            await self.flows.wait()
            self._finish_step(loop.time())

    def _finish_step(self, now: float) -> None:
        result = self.engine.finish_step()
        unix_time = time.time()
        if result.events:
            self.publisher.publish(unix_time, result.events)
        self.metrics.observe_loras(self.engine, unix_time)
        for output in result.outputs:
            pending = self._pending.get(output.request)
            if pending is None:
                continue
            if output.is_first:
                self.metrics.observe_ttft(now - pending.arrived_at)
            if output.is_last:
                del self._pending[output.request]
                self.metrics.finished[pending.finish_reason] += 1
            pending.inbox.deliver(output)
