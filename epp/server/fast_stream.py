"""One call on the fast transport: what has arrived of it, and the ways out. The `Call` that handlers are given.

Made and fed by its Connection, read and written by the one task that handles the call; all on the event loop.

Flow control: the bytes of messages that wait here keep the peer's window closed until the handler has taken the last of
them; those of a message that is still arriving do not, or it could not arrive. A writer waits while more than
Limits.send_queue of its bytes have not left; what it wrote is queued before it waits, so that a cancellation loses nothing.
"""

import asyncio
from collections import deque

from epp.server.conversation import StreamGoneError
from epp.server.fast_outbox import Outbox
from epp.server.grpc_framing import MessageReader, frame
from epp.server.service import Handler
from epp.server.status import GIVEN_UP, Ending


class Stream:
    """Not started until the first message, or the end, is there: streams that never say anything cost no task."""

    __slots__ = (
        "_messages",
        "_outbox",
        "_waiter",
        "answered",
        "deadline",
        "gone",
        "half_closed",
        "handler",
        "host",
        "id",
        "interruption",
        "reader",
        "running",
        "started",
        "task",
        "unread",
    )

    def __init__(self, outbox: Outbox, host: str, stream_id: int, handler: Handler, reader: MessageReader) -> None:
        self._outbox = outbox
        self.reader = reader
        self._messages: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.id = stream_id
        self.host = host
        self.handler = handler
        self.task: asyncio.Task[None] | None = None
        self.started = False
        """It has, or had, a task."""
        self.running = False
        """The task has begun; a task that is cancelled before never does."""
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

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
