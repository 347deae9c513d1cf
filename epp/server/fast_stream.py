"""One call on the fast transport: what has arrived of it, and the ways out.

Made and fed by its Connection; all on the event loop. A TaskStream is the `Call` that a handler reads and writes in a task
of its own; a LiveStream hands ext_proc's messages on at once and needs none.

Flow control: the bytes of messages that wait here keep the peer's window closed until they are taken; those of a message
that is still arriving do not, or it could not arrive. While more than Limits.send_queue of a stream's bytes have not left,
a TaskStream's writer waits and a LiveStream keeps the window closed. What was written is queued before that, so that a
cancellation loses nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from epp.server.conversation import StreamGoneError
from epp.server.fast_outbox import Outbox
from epp.server.grpc_framing import MessageReader, frame
from epp.server.live import LiveExchange, Wire
from epp.server.service import Handler
from epp.server.status import DONE, GIVEN_UP, Ending

# So many bytes may stay unacknowledged, because telling the peer costs as much as reading them; over all streams that is less than its window.
UNREAD_BYTES: Final = 1024


class Stream:
    """What both kinds have in common."""

    __slots__ = ("_outbox", "answered", "deadline", "gone", "half_closed", "host", "id", "interruption", "reader", "unread")

    def __init__(self, outbox: Outbox, host: str, stream_id: int, reader: MessageReader) -> None:
        self._outbox = outbox
        self.reader = reader
        self.id = stream_id
        self.host = host
        self.deadline: asyncio.TimerHandle | None = None
        self.interruption: Ending = GIVEN_UP
        self.answered = False
        """The head of the answer is out."""
        self.half_closed = False
        """The peer sends no more."""
        self.gone = False
        """Nothing can be sent any more."""
        self.unread = 0
        """Bytes that keep the window closed."""

    @property
    def started(self) -> bool:
        """It has brought a message, or ended in order."""
        raise NotImplementedError

    def close(self) -> None:
        """The stream is over for HTTP/2."""
        self.gone = True
        if self.deadline is not None:
            self.deadline.cancel()

    def taken(self) -> None:
        """All that arrived was taken: the peer may send as much again."""
        if self.unread:
            self._outbox.taken(self.id, self.unread)
            self.unread = 0


class LiveStream(Stream):
    """An ext_proc stream without a task: the `Wire` of a LiveExchange, which is made with the first message."""

    __slots__ = ("_finish", "_open", "exchange", "full")

    def __init__(
        self,
        outbox: Outbox,
        host: str,
        stream_id: int,
        reader: MessageReader,
        open_exchange: Callable[[Wire], LiveExchange],
        finish: Callable[["LiveStream", Ending], None],
    ) -> None:
        super().__init__(outbox, host, stream_id, reader)
        self._open = open_exchange
        self._finish = finish
        self.exchange: LiveExchange | None = None
        self.full = False
        """Too much of what it wrote has not left."""

    @property
    def started(self) -> bool:
        return self.exchange is not None or self.half_closed

    def feed(self, data: bytes) -> None:
        """Bytes of the body arrived."""
        self.unread += len(data)
        reader = self.reader
        for message in reader.feed(data):
            exchange = self.exchange
            if exchange is None:
                exchange = self.exchange = self._open(self)
            exchange.message(message)
            if self.gone:
                return
        if reader.failure is not None:
            self._fail(reader.failure.ending)
        elif self.unread > UNREAD_BYTES and not self.full:
            self.taken()

    def end(self) -> None:
        """The peer sends no more."""
        self.half_closed = True
        self.reader.end()
        if self.reader.failure is not None:
            self._fail(self.reader.failure.ending)
        elif self.exchange is not None:
            self.exchange.half_closed()
        else:
            self._finish(self, DONE)

    def interrupt(self) -> None:
        """The stream is over: reset, lost or ended from outside."""
        if self.exchange is not None:
            self.exchange.closed(self.interruption)

    def send(self, messages: Sequence[bytes], *, urgent: bool) -> None:
        """Queue messages. Nothing where the stream is gone."""
        if self.gone or not messages:
            return
        try:
            if not self.answered:
                self._outbox.begin(self.id)
                self.answered = True
            self.full = self._outbox.send(self, frame(*messages), urgent=urgent)
        except StreamGoneError:
            return

    def finish(self, ending: Ending) -> None:
        """Tell the peer how the call ended."""
        self._finish(self, ending)

    def drained(self) -> None:
        """Enough of what was queued has left."""
        self.full = False
        if not self.gone:
            self.taken()

    def _fail(self, ending: Ending) -> None:
        self.interruption = ending
        self._finish(self, ending)
        self.interrupt()


class TaskStream(Stream):
    """Not started until the first message, or the end, is there: streams that never say anything cost no task."""

    __slots__ = ("_messages", "_started", "_waiter", "handler", "running", "task")

    def __init__(self, outbox: Outbox, host: str, stream_id: int, reader: MessageReader, handler: Handler) -> None:
        super().__init__(outbox, host, stream_id, reader)
        self._messages: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._started = False
        self.handler = handler
        self.task: asyncio.Task[None] | None = None
        self.running = False
        """The task has begun; a task that is cancelled before never does."""

    @property
    def started(self) -> bool:
        return self._started

    def start(self, task: asyncio.Task[None]) -> None:
        """It has a task from now on."""
        self._started = True
        self.task = task

    # --- for the handler ------------------------------------------------------------------------------------

    async def read(self) -> bytes | None:
        """The next message; None: the peer sends no more. Raises CallError for what it sent instead of one."""
        messages = self._messages
        while not messages:
            if self.reader.failure is not None:
                raise self.reader.failure
            if self.half_closed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = messages.popleft()
        if not messages:
            self.taken()
        return message

    async def write(self, message: bytes) -> None:
        """Send one message; waits while the peer does not take what was sent. Raises StreamGoneError."""
        if self.gone:
            raise StreamGoneError("the stream is closed")
        if not self.answered:
            self._outbox.begin(self.id)
            self.answered = True
        await self._outbox.write(self.id, frame(message))

    # --- for the connection ---------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bool:
        """Bytes of the body arrived; whether the handler has something to do."""
        self.unread += len(data)
        messages = self.reader.feed(data)
        if messages:
            self._messages.extend(messages)
        elif self.reader.failure is None:
            if not self._messages:
                self.taken()
            return False
        self._wake()
        return True

    def end(self) -> None:
        """The peer sends no more."""
        self.half_closed = True
        self.reader.end()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
