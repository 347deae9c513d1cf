"""The books: every decision from its making to the end of its answer, closed exactly once.

The end is told by Envoy's access log, or by the end of the ext_proc stream where answers go through it (spec/protocol.md
10.1). A decision whose stream is open waits for nothing: the transport promises the stream's end. After it, nobody is
certain to speak again, so every decision waits for the log no longer than the grace of its case, which `stream_closed`
lists. Closed by `ended`, `stream_closed` or `expire`, whatever comes first; `close` is called with the decision and its
end, and what comes later finds nothing.

One owner, the director; on the event loop. Each call costs O(1), the reading of origins included (each is read once), `expire` O(what is due): the waiting are in order of time.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from epp.domain import Decision, DecisionId, EndCause, RequestEnd, StreamClosed
from epp.extproc import origin
from epp.picking.answer_seen import AnswerSeen

_K = TypeVar("_K", bound=str)

# An answer whose end nobody told is closed this long after its stream; longer than all but the longest answers, short
# enough that the load of an Envoy that died does not haunt its endpoints for hours.
MAX_AGE_S: Final = 600.0

# Where the end is known already, the log entry, which comes in 20 ms to a second, only adds to it.
ENDED_GRACE_S: Final = 2.0

# How long a request whose stream ended without a response is held open for an access log to connect.
SILENT_GRACE_S: Final = 30.0


@dataclass(slots=True)
class _Waiting:
    """Decisions whose stream is over, by the time it closed."""

    grace_s: float
    since: dict[DecisionId, float]


class OpenDecision:
    """A decision whose answer is not known to have ended. No dataclass, of which the compiled build would make instances slowly (setup.py)."""

    __slots__ = ("answer", "attributes", "cause", "decision", "origin", "since", "waiting")

    def __init__(self, decision: Decision, answer: AnswerSeen, since: float, attributes: bytes | None) -> None:
        """`since`: monotonic seconds when the request was here whole; `attributes`: what the data plane said of its origin."""
        self.decision = decision
        self.answer = answer
        self.since = since
        self.attributes = attributes
        self.origin: str | None = None
        """The same, read; only once a log entry came that can be told by nothing else."""
        self.waiting: _Waiting | None = None
        """None: its stream is open."""
        self.cause = EndCause.AGED_OUT
        """What the end is taken for if the log does not tell it; set with `waiting`."""


class OpenDecisions:
    """All open decisions of one director."""

    def __init__(self, now: Callable[[], float], close: Callable[[Decision, RequestEnd], None]) -> None:
        """`now` gives monotonic seconds; `close` is called once for every decision."""
        self._now = now
        self._close = close
        self._open: dict[DecisionId, OpenDecision] = {}
        self._by_origin: dict[str, OpenDecision] = {}
        # Those whose attributes nobody has read yet.
        self._unread: dict[DecisionId, OpenDecision] = {}
        self._for_details = _Waiting(ENDED_GRACE_S, {})
        self._silent = _Waiting(SILENT_GRACE_S, {})
        self._for_end = _Waiting(MAX_AGE_S, {})
        # Origins that the log told the end of while nobody here knew them: such a request may be in the middle of its pick.
        self._left_early: dict[str, float] = {}
        self._headers_come = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, opened: OpenDecision) -> None:
        """A decision was made."""
        self._open[opened.decision.id] = opened
        if opened.attributes is not None:
            self._unread[opened.decision.id] = opened
            if self._left_early:
                self._read_origins()
                if opened.origin in self._left_early:
                    self._wait(opened, self._for_details, EndCause.CLIENT_GONE)

    def ended(self, end: RequestEnd) -> bool:
        """The access log told an end; False: of no open decision."""
        if end.decision_id:
            opened = self._open.get(end.decision_id)
        elif end.origin is None:
            return False
        else:
            self._read_origins()
            opened = self._by_origin.get(end.origin)
            if opened is None:
                self._left_early[end.origin] = self._now()
        if opened is None:
            return False
        if opened.waiting is self._silent:
            self._the_log_speaks()
        end.decision_id = opened.decision.id
        self._finish(opened, end)
        return True

    def stream_closed(self, decision_id: DecisionId, closed: StreamClosed) -> None:
        """The ext_proc stream of a decision is over:

        1. The client left before our answer was out: the log may tell of it. A short wait.
        2. The answer came by to its end: that is the end, to which a log adds the endpoint that served. A short wait for it.
        3. Not to its end, or not at all, and the data plane logs: the log tells the end.
        4. Only its headers come by here: the stream ends with the answer, and nobody tells whether that was whole.
        5. It was cut off, or never began: the client left, or the data plane did.
        6. Answers stay away, and the log has not connected yet (it does with its first entry), or there is none. A wait in
           which the log may show up.

        That headers come by is learnt from the first that do: a data plane tells only its body modes.
        """
        opened = self._open.get(decision_id)
        if opened is None or opened.waiting is not None:
            return
        whole_answers_come = closed.bodies_sent or opened.answer.body_seen
        if not closed.routed:
            self._wait(opened, self._for_details, EndCause.CLIENT_GONE)
        elif closed.response_complete and closed.logged:
            self._wait(opened, self._for_details, EndCause.FINISHED)
        elif closed.logged:
            self._wait(opened, self._for_end, EndCause.AGED_OUT)
        elif closed.response_complete:
            self._finish(opened, _end(opened, EndCause.FINISHED, self._now()))
        elif not whole_answers_come and closed.response_seen:
            self._finish(opened, _end(opened, EndCause.FINISHED, self._now()))
            self._headers_speak()
        elif whole_answers_come or self._headers_come:
            self._finish(opened, _end(opened, EndCause.CLIENT_GONE, self._now()))
        else:
            self._wait(opened, self._silent, EndCause.AGED_OUT)

    def expire(self) -> int:
        """Close the decisions whose end nobody will tell; returns how many."""
        now = self._now()
        expired = [
            (decision_id, waiting.since[decision_id])
            for waiting in (self._for_details, self._silent, self._for_end)
            for decision_id in _before(waiting.since, now - waiting.grace_s)
        ]
        for decision_id, stream_closed_at in expired:
            opened = self._open[decision_id]
            self._finish(opened, _end(opened, opened.cause, stream_closed_at))
        for left in _before(self._left_early, now - ENDED_GRACE_S):
            del self._left_early[left]
        return len(expired)

    def _read_origins(self) -> None:
        unread, self._unread = self._unread, {}
        for opened in unread.values():
            assert opened.attributes is not None, "only such are unread"
            opened.origin = origin.from_attributes(opened.attributes)
            if opened.origin is not None:
                self._by_origin[opened.origin] = opened

    def _wait(self, opened: OpenDecision, waiting: _Waiting, cause: EndCause) -> None:
        opened.waiting, opened.cause = waiting, cause
        waiting.since[opened.decision.id] = self._now()

    def _the_log_speaks(self) -> None:
        """The log of a data plane that was silent has connected: what else was silent is most likely its, and waits for it."""
        now = self._now()
        for decision_id in self._silent.since:
            self._open[decision_id].waiting = self._for_end
            self._for_end.since[decision_id] = now
        self._silent.since.clear()

    def _headers_speak(self) -> None:
        """A data plane without a log sends headers of answers: of those that were silent the clients left before."""
        self._headers_come = True
        for decision_id, stream_closed_at in tuple(self._silent.since.items()):
            opened = self._open[decision_id]
            self._finish(opened, _end(opened, EndCause.CLIENT_GONE, stream_closed_at))

    def _finish(self, opened: OpenDecision, end: RequestEnd) -> None:
        del self._open[opened.decision.id]
        if opened.waiting is not None:
            del opened.waiting.since[opened.decision.id]
        self._unread.pop(opened.decision.id, None)
        if opened.origin is not None and self._by_origin.get(opened.origin) is opened:
            del self._by_origin[opened.origin]
        opened.answer.complete(end)
        self._close(opened.decision, end)


def _end(opened: OpenDecision, cause: EndCause, stream_closed_at: float) -> RequestEnd:
    """The end of a decision as its stream told it; a stream that lasted as long as the answer told its time too."""
    duration = stream_closed_at - opened.since if cause is EndCause.FINISHED else None
    return RequestEnd(opened.decision.id, cause, duration_s=duration)


def _before(times: Mapping[_K, float], limit: float) -> list[_K]:
    """The leading keys whose time is before the limit."""
    return [key for key, _ in itertools.takewhile(lambda pair: pair[1] < limit, times.items())]
