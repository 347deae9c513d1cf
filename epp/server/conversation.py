"""Drives one Exchange: reads messages, asks the director, writes replies. Knows no transport: it is given `read` and `write`.

One call of `converse` per ext_proc stream, run by the transport in the stream's own task. It may be cancelled at any
await; whatever ends it, the director hears of the end of the stream exactly once for the decision it made on it.
"""

from collections.abc import Awaitable, Callable, Sequence

from epp.domain import DecisionId
from epp.errors import EppError, RequestError
from epp.extproc import codec
from epp.extproc.events import Action, Pick, Reject, Reply
from epp.extproc.exchange import Exchange
from epp.reporter import Reporter
from epp.server.interfaces import RequestDirector

Read = Callable[[], Awaitable[bytes | None]]
"""The next message; None: the peer sends no more. Raises StreamGoneError where the stream broke."""

Write = Callable[[bytes], Awaitable[None]]
"""Send one message, waiting while the peer's window is full. Raises StreamGoneError where the stream broke."""


class StreamGoneError(EppError):
    """The peer reset the stream or the connection: nobody is left to answer."""


async def converse(read: Read, write: Write, *, director: RequestDirector, reporter: Reporter, max_body: int) -> None:
    """Serve one stream; returns where it is to end with OK.

    Raises ProtocolError where the peer broke the protocol, StreamGoneError where it left. Any other exception is a bug.
    """
    conversation = _Conversation(write, director, reporter, Exchange(max_body))
    try:
        # The messages stay in no variable here: the next read may last as long as the answer.
        while await conversation.handle(await read()):
            pass
    finally:
        conversation.close()


class _Conversation:
    """One exchange and the decision made in it."""

    __slots__ = ("_decision_id", "_director", "_exchange", "_reporter", "_routed", "_write")

    def __init__(self, write: Write, director: RequestDirector, reporter: Reporter, exchange: Exchange) -> None:
        self._write = write
        self._director = director
        self._reporter = reporter
        self._exchange = exchange
        self._decision_id: DecisionId | None = None
        self._routed = False

    async def handle(self, data: bytes | None) -> bool:
        """Handle one message; False: the stream is over."""
        if data is None:
            return False
        return await self._perform(self._exchange.receive(codec.decode(data)))

    async def _perform(self, actions: Sequence[Action]) -> bool:
        for action in actions:
            if isinstance(action, Pick):
                replies = await self._pick(action)
                goes_on = await self._send(replies)
                self._routed = bool(replies)
                return goes_on
            if isinstance(action, Reject):
                # The exchange refused the request itself, before the director heard of it.
                self._reporter.rejected(None, action.error)
            if not await self._send([action]):
                return False
        return True

    async def _pick(self, pick: Pick) -> list[Reply]:
        try:
            route = await self._director.pick(pick.headers, pick.subset, pick.body)
        except RequestError as error:
            return self._exchange.reject(error)
        self._decision_id = route.decision_id
        return self._exchange.resolve(route)

    async def _send(self, replies: Sequence[Reply]) -> bool:
        for reply in replies:
            await self._write(codec.encode(reply))
            if isinstance(reply, Reject):
                return False
        return True

    def close(self) -> None:
        """The stream is over."""
        if self._decision_id is not None:
            self._director.stream_closed(
                self._decision_id,
                routed=self._routed,
                response_seen=self._exchange.response_seen,
                response_complete=self._exchange.response_complete,
            )
