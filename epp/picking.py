"""The director: leads one request from its body to an endpoint, and from the end of its answer back to the books.

Order of steps: parse, candidates, tokens, decide (spec/plugins.md 10.3). Only finding the tokens may wait; from there
to the endpoint being chosen and counted against there is no await, so a burst of requests cannot herd on stale load
(architecture decision 4). Everything that does I/O, tells the time or throws dice is injected.

Owner of the open decisions: made by `pick`, closed exactly once by `ended`, `stream_closed` or `expire`. All methods
run on the event loop.
"""

import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from epp import names
from epp.datastore import Snapshot
from epp.domain import Decision, DecisionId, EndCause, Endpoint, InferenceRequest, ProfileResult, RequestEnd, TokenizedRequest
from epp.errors import InternalError, RequestError, ServiceUnavailableError
from epp.extproc.events import Route
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle
from epp.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

HEADER_ONLY_PROFILE = "header-only"

# An answer whose end nobody told is closed after this time; longer than all but the longest answers, short enough
# that the load of an Envoy that died does not haunt its endpoints for hours.
MAX_AGE_S = 600.0

# How long a request that never went on is held open: where Envoy knows its decision, the log entry comes in 20 ms.
ABANDONED_GRACE_S = 2.0

# How long a request whose stream ended without a response is held open for an access log to connect.
SILENT_GRACE_S = 30.0


class Director:
    """Answers "which endpoint?" for one pool."""

    def __init__(
        self,
        *,
        parse: Callable[[Mapping[str, str], bytes], InferenceRequest],
        tokenize: Callable[[InferenceRequest], Awaitable[TokenizedRequest]] | None,
        snapshot: Callable[[], Snapshot],
        scheduler: Scheduler,
        reporter: Reporter,
        now: Callable[[], float],
        rng: random.Random,
        new_id: Callable[[], str],
        access_loggers: Callable[[], int],
        honour_subset: bool = True,
    ) -> None:
        """`tokenize` None: nothing in the configuration reads tokens. `now` gives monotonic seconds, `new_id` unique strings, `access_loggers` how many access-log streams are open.

        `honour_subset` False: choose among all endpoints whatever the data plane lists (--disable-endpoint-subset-filter).
        """
        self._parse = parse
        self._tokenize = tokenize
        self._snapshot = snapshot
        self._scheduler = scheduler
        self._reporter = reporter
        self._now = now
        self._rng = rng
        self._new_id = new_id
        self._access_loggers = access_loggers
        self._honour_subset = honour_subset
        self._open: dict[DecisionId, Decision] = {}
        # Ids by the time their stream closed; an id may be here after its decision was closed otherwise, until its time is up.
        self._abandoned: dict[DecisionId, float] = {}
        self._silent: dict[DecisionId, float] = {}

    @property
    def open_decisions(self) -> int:
        """Decisions whose answer is not known to have ended."""
        return len(self._open)

    async def pick(self, headers: Mapping[str, str], subset: Sequence[str] | None, body: bytes | None) -> Route:
        """The endpoint for one request; `body` is None for a request without one.

        Raises RequestError where the request ends here (spec/protocol.md 1.5.1).
        """
        request: InferenceRequest | None = None
        try:
            if body is None:
                decision = self._pick_without_body(headers, subset)
            else:
                request = self._parse(headers, body)
                self._candidates(subset)  # an empty pool answers before anything is tokenized
                tokens = None
                if self._tokenize is not None:
                    tokens = await self._tokenize(request)
                    self._reporter.tokenized(request, tokens)
                decision = self._decide(request, tokens, headers, subset)
        except RequestError as error:
            self._reporter.rejected(request, error)
            raise
        except Exception as bug:
            logger.exception("picking failed: this is a bug in epp")
            failure = InternalError("picking failed")
            self._reporter.rejected(request, failure)
            raise failure from bug
        self._open[decision.id] = decision
        self._reporter.decided(decision)
        generated_id = () if headers.get(names.REQUEST_ID) else ((names.REQUEST_ID, decision.request_id),)
        return Route(decision.destination, decision.id, set_headers=generated_id)

    def _decide(
        self, request: InferenceRequest, tokens: TokenizedRequest | None, headers: Mapping[str, str], subset: Sequence[str] | None
    ) -> Decision:
        started = self._now()
        cycle = Cycle(request, tokens, self._candidates(subset), started, self._rng)
        decision = self._scheduler.schedule(
            cycle,
            decision_id=DecisionId(self._new_id()),
            request_id=headers.get(names.REQUEST_ID) or self._new_id(),
        )
        decision.duration_s = self._now() - started
        return decision

    def _pick_without_body(self, headers: Mapping[str, str], subset: Sequence[str] | None) -> Decision:
        """A GET says nothing to route by: any candidate will do (spec/protocol.md 2.3.3, with the subset honoured: D7)."""
        if not self._snapshot().endpoints:
            raise InternalError("no pods available in datastore")
        candidates = self._candidates(subset)
        chosen = ProfileResult(HEADER_ONLY_PROFILE, candidates, [], [], [self._rng.choice(candidates)])
        return Decision(
            DecisionId(self._new_id()),
            headers.get(names.REQUEST_ID) or self._new_id(),
            chosen,
            {HEADER_ONLY_PROFILE: chosen},
            request=None,
            tokens=None,
            scheduled=candidates,
            decided_at=self._now(),
        )

    def _candidates(self, subset: Sequence[str] | None) -> Sequence[Endpoint]:
        """All endpoints, or those the data plane lists as "ip:port" or "ip" (spec/protocol.md 1.2, D6); never empty."""
        endpoints: Sequence[Endpoint] = self._snapshot().endpoints
        if subset is not None and self._honour_subset:
            wanted = frozenset(subset)
            endpoints = [e for e in endpoints if e.host_port in wanted or e.address in wanted or f"[{e.address}]" in wanted]
        if not endpoints:
            raise ServiceUnavailableError(
                "failed to find endpoint candidates for serving the request", dropped_reason="rejected-no-endpoints"
            )
        return endpoints

    def ended(self, end: RequestEnd) -> None:
        """Envoy's access log told the end of an answer."""
        decision = self._open.pop(end.decision_id, None)
        if decision is None:
            self._reporter.unmatched_end("unknown_decision")
        else:
            self._close(decision, end)

    def unmatched(self, reason: str) -> None:
        """An access-log entry without a decision of ours."""
        self._reporter.unmatched_end(reason)

    def stream_closed(self, decision_id: DecisionId, *, routed: bool, response_seen: bool, response_complete: bool) -> None:
        """The ext_proc stream is over. Four cases (spec/protocol.md 10.1):

        1. The client left before our answer was out: the log may tell of it without naming the decision. A short wait.
        2. An access log is connected: it tells the end, with status, timings and the endpoint that served.
        3. The response went through ext_proc: the stream ends with the answer, complete or cut off.
        4. Neither: responses are skipped and the log has not connected yet (it does with its first entry), or there is
           none. `expire` closes the decision unless the log shows up.
        """
        decision = self._open.get(decision_id)
        if decision is None:
            return
        if not routed:
            self._abandoned[decision_id] = self._now()
        elif self._access_loggers():
            return
        elif response_seen:
            del self._open[decision_id]
            self._close(decision, RequestEnd(decision_id, EndCause.FINISHED if response_complete else EndCause.CLIENT_GONE))
        else:
            self._silent[decision_id] = self._now()

    def expire(self) -> int:
        """Close decisions whose end nobody will tell; returns how many. Cost O(closed): the books are in order of time."""
        now = self._now()
        if self._access_loggers():
            self._silent.clear()
        expired = [
            *((decision_id, EndCause.CLIENT_GONE) for decision_id in _older_than(self._abandoned.items(), now - ABANDONED_GRACE_S)),
            *((decision_id, EndCause.AGED_OUT) for decision_id in _older_than(self._silent.items(), now - SILENT_GRACE_S)),
            *((d, EndCause.AGED_OUT) for d in _older_than(((d.id, d.decided_at) for d in self._open.values()), now - MAX_AGE_S)),
        ]
        closed = 0
        for decision_id, cause in expired:
            self._abandoned.pop(decision_id, None)
            self._silent.pop(decision_id, None)
            decision = self._open.pop(decision_id, None)
            if decision is not None:
                self._close(decision, RequestEnd(decision_id, cause))
                closed += 1
        return closed

    def _close(self, decision: Decision, end: RequestEnd) -> None:
        if decision.request is not None:
            self._scheduler.ended(decision, end)
        self._reporter.ended(decision, end)


def _older_than(times: Iterable[tuple[DecisionId, float]], limit: float) -> list[DecisionId]:
    """The leading ids whose time is before the limit."""
    return [decision_id for decision_id, _ in itertools.takewhile(lambda pair: pair[1] < limit, times)]
