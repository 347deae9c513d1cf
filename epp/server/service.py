"""The gRPC services of this process without a transport: which methods there are, what each does, how it ends.

A transport finds the handler of a path in `methods`, runs it in a task of its own with a `Call`, and tells the peer the
Ending it returns. A transport ends a call early by cancelling that task; nothing here awaits afterwards. ext_proc, whose
streams come thousands a second, can also be served without a task: `open_exchange` gives a `LiveExchange` that the
transport calls. All on one event loop.

How a call ends: OK when the peer has no more to say or was sent an immediate response; INVALID_ARGUMENT when it broke the
protocol; what a CallError says; INTERNAL on a bug of ours, logged with the number of the call.
"""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import ClassVar, Protocol

from epp import names
from epp.errors import ProtocolError
from epp.extproc import access_log
from epp.extproc.gathering import ALL_BODIES_BYTES, BodyRoom
from epp.reporter import Reporter
from epp.server import health as health_service
from epp.server.conversation import Context, Conversation, StreamGoneError, TaskConversation
from epp.server.interfaces import Health, RequestDirector
from epp.server.live import LiveExchange, Wire
from epp.server.status import CODE_NAMES, DONE, GIVEN_UP, CallError, Ending, Status

logger = logging.getLogger(__name__)


class Call(Protocol):
    """One call as a transport gives it to a handler; a unary one reads one message and writes one."""

    @property
    def host(self) -> str:
        """The peer's address without its port; "" where it has none."""

    @property
    def interruption(self) -> Ending:
        """What a cancellation of the handler's task means."""

    async def read(self) -> bytes | None:
        """The next message; None: the peer sends no more. Raises StreamGoneError, or CallError for what it sent instead of one."""

    async def write(self, message: bytes) -> None:
        """Send one message, waiting while the peer does not take it. Raises StreamGoneError."""


Handler = Callable[[Call], Awaitable[Ending]]


class Service:
    """The handlers, and what they know together: open conversations and data planes that log to us."""

    def __init__(
        self,
        director: RequestDirector,
        health: Health,
        reporter: Reporter,
        *,
        max_body: int,
        now: Callable[[], float],
        instance: str = "",
    ) -> None:
        """`max_body` in bytes; `now` gives monotonic seconds; `instance` names this picker among those that listen to the same Envoy."""
        self._director = director
        self._health = health
        self._reporter = reporter
        self._now = now
        self._instance = instance
        self._numbers = itertools.count(1)
        self._open: set[TaskConversation | LiveExchange] = set()
        self._finishing = False
        self._loggers: Counter[str] = Counter()
        self.room = BodyRoom(max(ALL_BODIES_BYTES, max_body))
        """For the request bodies that are still coming."""
        self._context = Context(director, reporter, max_body, now, self._loggers, self.room)
        self._log_tasks: set[asyncio.Task[object]] = set()
        self.repeats = Repeats()
        self.health_methods: Mapping[str, Handler] = {
            f"/{health_service.SERVICE}/Check": self._check,
            f"/{health_service.SERVICE}/List": self._list,
        }
        self.methods: Mapping[str, Handler] = {
            f"/{names.EXT_PROC_SERVICE}/Process": self._process,
            f"/{names.ACCESS_LOG_SERVICE}/StreamAccessLogs": self._stream_access_logs,
            **self.health_methods,
        }
        self.exchanges: Mapping[str, Callable[[Wire], LiveExchange]] = {f"/{names.EXT_PROC_SERVICE}/Process": self.open_exchange}
        """Methods of `methods` that can be served without a task."""

    @property
    def access_loggers(self) -> int:
        """Access-log streams that are open now."""
        return self._loggers.total()

    def finish_answers(self) -> None:
        """End every conversation with OK as soon as its request is on its way; those that begin later too. For draining.

        Log streams, which never end by themselves, end at once.
        """
        self._finishing = True
        for conversation in tuple(self._open):
            conversation.drain()
        for task in self._log_tasks:
            task.cancel()

    def open_exchange(self, wire: Wire) -> LiveExchange:
        """ExternalProcessor/Process without a task."""
        exchange = LiveExchange(self._context, wire, self._failed, self._open.discard)
        self._open.add(exchange)
        if self._finishing:
            exchange.drain()
        return exchange

    # --- handlers -------------------------------------------------------------------------------------------

    async def _process(self, call: Call) -> Ending:
        """ExternalProcessor/Process."""
        conversation = TaskConversation(Conversation(self._context, call.host), call.read, call.write)
        self._open.add(conversation)
        if self._finishing:
            conversation.drain()
        started, ending = self._now(), None
        self._reporter.stream_opened()
        try:
            ending = await self._outcome("ext_proc", conversation.run())
            return ending
        finally:
            self._open.discard(conversation)
            self._reporter.stream_closed(CODE_NAMES[(ending or call.interruption).status], self._now() - started)

    async def _stream_access_logs(self, call: Call) -> Ending:
        """AccessLogService/StreamAccessLogs; a StreamAccessLogsResponse is an empty message."""
        host, task = call.host, asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        self._log_tasks.add(task)
        self._loggers[host] += 1
        try:
            return await self._outcome("access log", self._take_access_log(call))
        finally:
            self._log_tasks.discard(task)
            self._loggers[host] -= 1
            if not self._loggers[host]:
                del self._loggers[host]

    async def _check(self, call: Call) -> Ending:
        """Health/Check."""
        return await self._outcome("health", self._answer(call, partial(health_service.check, self._health)))

    async def _list(self, call: Call) -> Ending:
        """Health/List."""
        return await self._outcome("health", self._answer(call, lambda _: health_service.list_services(self._health)))

    # --- steps ----------------------------------------------------------------------------------------------

    async def _outcome(self, kind: str, work: Awaitable[None]) -> Ending:
        """Do the work of a call; how it ended. A cancellation passes through."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  # `_failed` tells it
            return self._failed(error, kind)
        return DONE

    def _failed(self, error: Exception, kind: str = "ext_proc") -> Ending:
        """How a call ends whose work raised this."""
        if isinstance(error, StreamGoneError):
            return GIVEN_UP
        number = next(self._numbers)
        if isinstance(error, ProtocolError | CallError):
            # A filter configured wrongly repeats its error with every request: say it once.
            logger.log(self.repeats.level(str(error)), "%s stream %d ended: %s", kind, number, error)
            return error.ending if isinstance(error, CallError) else Ending(Status.INVALID_ARGUMENT, str(error))
        logger.error("%s stream %d failed: this is a bug in epp", kind, number, exc_info=error)
        return Ending(Status.INTERNAL, f"a bug in epp, see its log: {kind} stream {number} failed")

    async def _take_access_log(self, call: Call) -> None:
        while (data := await call.read()) is not None:
            batch = access_log.decode(data, self._instance)
            for end in batch.ends:
                try:
                    self._director.ended(end)
                except Exception:  # the other ends of this batch must not be lost with this one
                    logger.exception("the end of decision %s could not be booked: this is a bug in epp", end.decision_id)
            for _ in range(batch.others):
                self._director.unmatched("other_instance")
        await call.write(b"")

    async def _answer(self, call: Call, answer: Callable[[bytes], bytes]) -> None:
        """A unary call."""
        request = await call.read()
        if request is None:
            raise ProtocolError("a call without its one request message")
        await call.write(answer(request))


class Repeats:
    """Tells a warning from its repetitions, for the last few different ones. Not for texts that differ every time."""

    REMEMBERED: ClassVar = 64

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}  # in order of first sight

    def level(self, text: str) -> int:
        """logging.WARNING the first time, then logging.DEBUG. Cost O(1)."""
        if text in self._seen:
            return logging.DEBUG
        if len(self._seen) >= self.REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[text] = None
        return logging.WARNING
