"""An ext_proc stream that its transport calls instead of running in a task: they come thousands a second.

A LiveExchange is made by the service for each stream of the fast transport, which is its Wire; on the event loop. Only a pick
that takes time gets a task.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from epp.extproc.events import Route
from epp.server.conversation import Context, Conversation
from epp.server.status import CODE_NAMES, DONE, Ending


class Wire(Protocol):
    """One stream as a transport gives it to a LiveExchange."""

    @property
    def host(self) -> str:
        """The peer's address without its port; "" where it has none."""

    def send(self, messages: Sequence[bytes], *, urgent: bool) -> None:
        """Queue messages; `urgent`: somebody waits for them. Nothing where the stream is gone."""

    def finish(self, ending: Ending) -> None:
        """Tell the peer how the call ended, after all messages. Not called after `LiveExchange.closed`."""


class LiveExchange(Conversation):
    """A conversation on a wire: `message` for each message, `half_closed` and `closed` once each at most."""

    __slots__ = ("_failed", "_forget", "_half_closed", "_settling", "_started", "_wire")

    def __init__(
        self, context: Context, wire: Wire, failed: Callable[[Exception], Ending], forget: Callable[["LiveExchange"], None]
    ) -> None:
        """`failed` says how a stream ends that an exception ended; `forget` is called when it has ended."""
        super().__init__(context, wire.host)
        self._wire: Wire | None = wire
        self._failed = failed
        self._forget = forget
        self._settling: asyncio.Task[None] | None = None
        """A pick that takes time."""
        self._half_closed = False
        self._started = context.now()
        context.reporter.stream_opened()

    def message(self, data: bytes) -> None:
        """The peer sent one. Nothing where the stream has ended."""
        if self._wire is None:
            return
        try:
            replies = self.receive(data)
        except Exception as error:  # noqa: BLE001  # `failed` tells it
            self._end(self._failed(error))
            return
        if replies:
            self._send(replies)
        elif self.waiting is not None and self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle(self.waiting))

    def half_closed(self) -> None:
        """The peer sends no more: it gets the replies it is owed, then the end."""
        self._half_closed = True
        if self._settling is None:
            self._end(DONE)

    def closed(self, interruption: Ending) -> None:
        """The stream is over for the transport: reset, lost, ended from outside."""
        if self._wire is not None:
            self._over_with(interruption)

    def drain(self) -> None:
        """As `Conversation.finish`, on the wire."""
        self._send(self.finish())

    def _send(self, messages: Sequence[bytes]) -> None:
        wire = self._wire
        if wire is None:
            return
        wire.send(messages, urgent=not self.routed)
        self.sent()
        if self.over:
            self._end(DONE)

    async def _settle(self, waiting: Awaitable[Route]) -> None:
        try:
            replies = await self.settle(waiting)
        except Exception as error:  # noqa: BLE001  # `failed` tells it
            self._end(self._failed(error))
        else:
            self._send(replies)
            if self._half_closed:
                self._end(DONE)
        finally:
            self._settling = None

    def _end(self, ending: Ending) -> None:
        wire = self._wire
        if wire is not None:
            self._over_with(ending)
            wire.finish(ending)

    def _over_with(self, ending: Ending) -> None:
        self._wire = None
        settling, self._settling = self._settling, None
        if settling is not None and settling is not asyncio.current_task():
            settling.cancel()
        self.close()
        self._forget(self)
        self._reporter.stream_closed(CODE_NAMES[ending.status], self._now() - self._started)
