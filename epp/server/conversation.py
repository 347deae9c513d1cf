"""Drives one Exchange: reads messages, asks the director, writes replies. Knows no transport: it is given `read` and `write`.

One Conversation per ext_proc stream, run by the transport in the stream's own task. It may be cancelled at any
await; whatever ends it, the director hears of the end of the stream exactly once for the decision it made on it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from epp.domain import DecisionId, StreamClosed
from epp.errors import EppError, RequestError
from epp.extproc import codec
from epp.extproc.events import Action, Pick, Reject, Reply, Route
from epp.extproc.exchange import Exchange
from epp.reporter import Reporter
from epp.server.interfaces import RequestDirector

Read = Callable[[], Awaitable[bytes | None]]
"""The next message; None: the peer sends no more. Raises StreamGoneError where the stream broke."""

Write = Callable[[bytes], Awaitable[None]]
"""Send one message, waiting while the peer's window is full. Raises StreamGoneError where the stream broke."""


class StreamGoneError(EppError):
    """The peer reset the stream or the connection: nobody is left to answer."""


class Conversation:
    """One exchange and the decision made in it. `run` it once; `finish` it at any time."""

    __slots__ = (
        "_answering_s",
        "_began",
        "_decision_id",
        "_director",
        "_exchange",
        "_finishing",
        "_logged",
        "_now",
        "_read",
        "_reading",
        "_reporter",
        "_routed",
        "_task",
        "_write",
    )

    def __init__(
        self,
        read: Read,
        write: Write,
        *,
        director: RequestDirector,
        reporter: Reporter,
        max_body: int,
        now: Callable[[], float],
        logged: Callable[[], bool],
    ) -> None:
        """`now` gives monotonic seconds; `logged` says whether this data plane has an access-log stream open to us."""
        self._read = read
        self._write = write
        self._director = director
        self._reporter = reporter
        self._now = now
        self._logged = logged
        self._exchange = Exchange(max_body)
        self._decision_id: DecisionId | None = None
        self._routed = False
        self._finishing = False
        self._reading = False
        self._began: float | None = None
        self._answering_s = 0.0
        self._task: asyncio.Task[object] | None = None

    async def run(self) -> None:
        """Serve the stream; returns where it is to end with OK.

        Raises ProtocolError where the peer broke the protocol, StreamGoneError where it left. Any other exception is a bug.
        """
        self._task = asyncio.current_task()
        try:
            while await self._step():
                pass
        except asyncio.CancelledError:
            if not self._interrupted_by_finish():
                raise
            await self._let_go()
        finally:
            self._task = None
            self._close()

    def finish(self) -> None:
        """End the stream with OK as soon as its request is on its way: what is left of the answer passes unprocessed.

        For draining: a stream that ends with OK harms no answer (spec/protocol.md 10.1). A request phase goes on to its end.
        """
        self._finishing = True
        if self._routed and self._reading and self._task is not None:
            self._task.cancel()

    async def _step(self) -> bool:
        """Handle one message; False: the stream is over."""
        if self._finishing and self._routed:
            await self._let_go()
            return False
        # The message stays in no variable here: the next read may last as long as the answer.
        self._reading = True
        try:
            data = await self._read()
        finally:
            self._reading = False
        if data is None:
            return False
        began = self._now()
        if self._began is None:
            self._began = began
        actions = self._exchange.receive(codec.decode(data))
        del data
        goes_on = await self._perform(actions)
        if self._exchange.response_seen:
            self._answering_s += self._now() - began
        return goes_on

    def _interrupted_by_finish(self) -> bool:
        return self._finishing and self._routed and self._task is not None and self._task.uncancel() == 0

    async def _let_go(self) -> None:
        await self._send(self._exchange.release())

    async def _perform(self, actions: Sequence[Action]) -> bool:
        for action in actions:
            if isinstance(action, Pick):
                replies = await self._pick(action)
                goes_on = await self._send(replies)
                self._routed = bool(replies)
                if self._began is not None:
                    self._reporter.request_processed(self._now() - self._began)
                return goes_on and not self._exchange.over
            if isinstance(action, Reject):
                # The exchange refused the request itself, before the director heard of it.
                self._reporter.rejected(None, action.error)
            if not await self._send([action]):
                return False
        return True

    async def _pick(self, pick: Pick) -> list[Reply]:
        try:
            picked = self._director.pick(pick.headers, pick.subset, pick.body, body_follows=pick.body_follows, origin=pick.origin)
            route = picked if isinstance(picked, Route) else await picked
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

    def _close(self) -> None:
        """The stream is over."""
        if self._decision_id is not None:
            exchange = self._exchange
            if exchange.response_seen:
                self._reporter.response_processed(self._answering_s)
            self._director.stream_closed(
                self._decision_id,
                StreamClosed(self._routed, exchange.response_seen, exchange.response_complete, self._logged(), exchange.bodies_sent),
            )
