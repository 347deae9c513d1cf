"""Drives one Exchange: messages in, replies out, the director asked in between. Knows no transport, and needs no task.

`Conversation` is called: each message gives the replies it causes, at once, unless a pick takes time. `TaskConversation`
drives one for transports that are awaited. A conversation may be given up at any moment; whatever ends it, the director
hears of the end of the stream exactly once for the decision it made on it. All on one event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container, Coroutine, Sequence
from dataclasses import dataclass

from epp.domain import DecisionId, StreamClosed
from epp.errors import EppError, RequestError
from epp.extproc import codec
from epp.extproc.events import Pick, Reject, Reply, Route
from epp.extproc.exchange import Exchange
from epp.extproc.gathering import BodyRoom
from epp.reporter import Reporter
from epp.server.interfaces import RequestDirector

Read = Callable[[], Awaitable[bytes | None]]
"""The next message; None: the peer sends no more. Raises StreamGoneError where the stream broke."""

Write = Callable[[bytes], Awaitable[None]]
"""Send one message, waiting while the peer's window is full. Raises StreamGoneError where the stream broke."""


class StreamGoneError(EppError):
    """The peer reset the stream or the connection: nobody is left to answer."""


@dataclass(slots=True)
class Context:
    """What all conversations of one server have in common."""

    director: RequestDirector
    reporter: Reporter
    max_body: int
    """Bytes of the largest request body."""
    now: Callable[[], float]
    """Monotonic seconds."""
    logs: Container[str]
    """Hosts of the data planes that have an access-log stream open to us."""
    room: BodyRoom
    """For the bodies that are still coming."""


class Conversation:
    """One exchange and the decision made in it. After what `receive` or `settle` returned has been sent, call `sent`."""

    __slots__ = (
        "_answering_s",
        "_began",
        "_decision_id",
        "_director",
        "_exchange",
        "_finishing",
        "_host",
        "_logs",
        "_now",
        "_over",
        "_reporter",
        "_routing",
        "routed",
        "waiting",
    )

    def __init__(self, context: Context, host: str) -> None:
        """`host`: the data plane's address."""
        self._director = context.director
        self._reporter = context.reporter
        self._now = context.now
        self._logs = context.logs
        self._host = host
        self._exchange = Exchange(context.max_body, context.room)
        self._decision_id: DecisionId | None = None
        self._routing = False
        """What was returned last lets the request go on."""
        self.routed = False
        """The whole answer to the request phase is on its way."""
        self._finishing = False
        self._over = False
        self._began: float | None = None
        self._answering_s = 0.0
        self.waiting: Awaitable[Route] | None = None
        """A pick that takes time: pass it to `settle`. Messages may go on arriving meanwhile."""

    @property
    def over(self) -> bool:
        """The stream is to end with OK now: it has come to its end, or nobody needs what is still to come.

        Where only the headers of an answer would come by, and a log tells its end, ending first saves both sides messages.
        """
        if self._over or not self.routed:
            return self._over
        exchange = self._exchange
        return self._finishing or exchange.over or (exchange.only_headers_follow and self._host in self._logs)

    def receive(self, data: bytes) -> Sequence[bytes]:
        """The replies to one message. Raises ProtocolError where the peer broke the protocol."""
        exchange = self._exchange
        if self._began is None or self.routed:
            began = self._now()
            if self._began is None:
                self._began = began
        actions = exchange.receive(codec.decode(data))
        if not actions:
            return ()
        sent: list[bytes] = []
        for action in actions:
            if isinstance(action, Pick):
                self._pick(action, sent)
                continue
            if isinstance(action, Reject):
                # The exchange refused the request itself, before the director heard of it.
                self._reporter.rejected(None, action.error)
            self._add((action,), sent)
        if self.routed and exchange.response_seen:
            self._answering_s += self._now() - began
        return sent

    async def settle(self, waiting: Awaitable[Route]) -> list[bytes]:
        """The replies that a pick which took time leads to."""
        self.waiting = None
        sent: list[bytes] = []
        try:
            self._picked(await waiting, sent)
        except RequestError as error:
            self._refused(error, sent)
        return sent

    def sent(self) -> None:
        """What was returned last is on its way."""
        if self._routing:
            self._routing, self.routed = False, True

    def finish(self) -> list[bytes]:
        """End the stream with OK as soon as its request is on its way: what is left of the answer passes unprocessed.

        Returns what is held of the answer, which has to go out before. For draining: a stream that ends with OK harms no
        answer (spec/protocol.md 10.1). A request phase goes on to its end.
        """
        self._finishing = True
        sent: list[bytes] = []
        if self.routed:
            self._add(self._exchange.release(), sent)
        return sent

    def close(self) -> None:
        """The stream is over, any way. Once."""
        if self.waiting is not None and isinstance(self.waiting, Coroutine):  # None first: an ABC costs half a microsecond
            self.waiting.close()  # nobody will await it
        exchange = self._exchange
        exchange.abandon()
        if self._decision_id is None:
            return
        if exchange.response_seen:
            self._reporter.response_processed(self._answering_s)
        self._director.stream_closed(
            self._decision_id,
            StreamClosed(self.routed, exchange.response_seen, exchange.response_complete, self._host in self._logs, exchange.bodies_sent),
        )

    # --- steps ----------------------------------------------------------------------------------------------

    def _pick(self, pick: Pick, sent: list[bytes]) -> None:
        try:
            picked = self._director.pick(pick.headers, pick.subset, pick.body, body_follows=pick.body_follows, attributes=pick.attributes)
        except RequestError as error:
            self._refused(error, sent)
            return
        if isinstance(picked, Route):
            self._picked(picked, sent)
        else:
            self.waiting = picked

    def _picked(self, route: Route, sent: list[bytes]) -> None:
        self._decision_id = route.decision_id
        replies = self._exchange.resolve(route)
        self._routing = bool(replies)
        self._add(replies, sent)
        self._tell_time()

    def _refused(self, error: RequestError, sent: list[bytes]) -> None:
        self._add(self._exchange.reject(error), sent)
        self._tell_time()

    def _tell_time(self) -> None:
        if self._began is not None:
            self._reporter.request_processed(self._now() - self._began)

    def _add(self, replies: Sequence[Reply], sent: list[bytes]) -> None:
        for reply in replies:
            sent.append(codec.encode(reply))
            if isinstance(reply, Reject):
                self._over = True


class TaskConversation:
    """A conversation in a task of its own: `run` it once; `drain` it at any time."""

    __slots__ = ("_conversation", "_held", "_read", "_reading", "_task", "_write")

    def __init__(self, conversation: Conversation, read: Read, write: Write) -> None:
        self._conversation = conversation
        self._read = read
        self._write = write
        self._reading = False
        self._held: list[bytes] = []
        """What was held of the answer when the stream was asked to finish."""
        self._task: asyncio.Task[object] | None = None

    async def run(self) -> None:
        """Serve the stream; returns where it is to end with OK.

        Raises ProtocolError where the peer broke the protocol, StreamGoneError where it left. Any other exception is a bug.
        """
        self._task = asyncio.current_task()
        try:
            await self._serve()
            await self._send(self._held)
        finally:
            self._task = None
            self._conversation.close()

    def drain(self) -> None:
        """As `Conversation.finish`, at any time."""
        self._held = self._conversation.finish()
        if self._conversation.over and self._reading and self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        conversation = self._conversation
        try:
            while not conversation.over and await self._step():
                pass
        except asyncio.CancelledError:
            # Of `finish`, which interrupts a read, unless somebody else cancels too.
            if not conversation.over or self._task is None or self._task.uncancel() > 0:
                raise

    async def _step(self) -> bool:
        """Handle one message; False: the peer sends no more."""
        # The message stays in no variable here: the next read may last as long as the answer.
        self._reading = True
        try:
            data = await self._read()
        finally:
            self._reading = False
        if data is None:
            return False
        conversation = self._conversation
        await self._send(conversation.receive(data))
        if conversation.waiting is not None:
            await self._send(await conversation.settle(conversation.waiting))
        return True

    async def _send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            await self._write(message)
        self._conversation.sent()
