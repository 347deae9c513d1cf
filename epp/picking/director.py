"""The director: leads one request from its body to an endpoint, and from the end of its answer back to the books.

Order of steps: parse, candidates, tokens, decide (spec/plugins.md 10.3). Only finding the tokens may wait; from there
to the endpoint being chosen and counted against there is no await, so a burst of requests cannot herd on stale load
(architecture decision 4). Everything that does I/O, tells the time or throws dice is injected.

What is open and when it is over is kept in `open_decisions`. All methods run on the event loop.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from epp import names
from epp.datastore import Snapshot
from epp.domain import (
    Api,
    Decision,
    DecisionId,
    Endpoint,
    InferenceRequest,
    ProfileResult,
    RequestEnd,
    StreamClosed,
    TokenizedRequest,
    TokenState,
)
from epp.errors import InternalError, NoneOfKindError, RequestError, ServiceUnavailableError
from epp.extproc import access_log, end_causes
from epp.extproc.events import Route
from epp.picking.answer_seen import AnswerSeen
from epp.picking.open_decisions import OpenDecision, OpenDecisions
from epp.reporter import Reporter
from epp.requests.rewrite import with_model
from epp.scheduling.interfaces import Cycle
from epp.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

HEADER_ONLY_PROFILE: Final = "header-only"

# Why a request has no tokens that is routed before its body comes; a label value of epp_requests_without_tokens_total.
BODY_NOT_SENT: Final = "body_not_sent"


class _Picking:
    """One pick, as far as it has come. No dataclass, of which the compiled build would make instances slowly (setup.py)."""

    __slots__ = ("attributes", "candidates", "forwarded", "headers", "request", "since", "subset")

    def __init__(self, headers: Mapping[str, str], subset: Sequence[str] | None, attributes: bytes | None, since: float) -> None:
        self.headers = headers
        self.subset = subset
        self.attributes = attributes
        self.since = since
        self.request: InferenceRequest | None = None
        self.forwarded: bytes | None = None
        """The body that goes on, where it is not the one that came."""
        self.candidates: Sequence[Endpoint] = ()


class Director:
    """Answers "which endpoint?" for one pool."""

    def __init__(
        self,
        *,
        parse: Callable[[Mapping[str, str], bytes], InferenceRequest],
        tokenize: Callable[[InferenceRequest], TokenizedRequest | Awaitable[TokenizedRequest]] | None,
        snapshot: Callable[[], Snapshot],
        scheduler: Scheduler,
        reporter: Reporter,
        now: Callable[[], float],
        rng: random.Random,
        new_id: Callable[[], str],
        new_request_id: Callable[[], str],
        instance: str = "",
        honour_subset: bool = True,
        emit_scores: bool = False,
        not_connected: Callable[[str], None] | None = None,
    ) -> None:
        """`tokenize` None: nothing in the configuration reads tokens; it returns at once what takes no time.

        `now` gives monotonic seconds, `new_id` what no other decision of this picker had or will have, also after a
        restart, `new_request_id` the x-request-id of a request without one.

        `instance` tells this picker from others that get the same access log. `honour_subset` False: choose among all
        endpoints whatever the data plane lists (--disable-endpoint-subset-filter). `emit_scores`: routes tell the total of
        each scored candidate (--emit-endpoint-scores). `not_connected` is told the "ip:port" the data plane got no connection to.
        """
        self._parse = parse
        self._tokenize = tokenize
        self._snapshot = snapshot
        self._scheduler = scheduler
        self._reporter = reporter
        self._now = now
        self._rng = rng
        self._new_id = new_id
        self._new_request_id = new_request_id
        self._instance = instance
        self._honour_subset = honour_subset
        self._emit_scores = emit_scores
        self._not_connected = not_connected
        self._open = OpenDecisions(now, self._close)

    @property
    def open_decisions(self) -> int:
        """Decisions whose answer is not known to have ended."""
        return len(self._open)

    def pick(
        self,
        headers: Mapping[str, str],
        subset: Sequence[str] | None,
        body: bytes | None,
        *,
        body_follows: bool = False,
        attributes: bytes | None = None,
    ) -> Route | Awaitable[Route]:
        """The endpoint for one request; `body` is None for a request without one, and for one whose body follows later.

        Returned at once unless the tokens take time: then something to await. Raises RequestError, here or there, where the
        request ends here (spec/protocol.md 1.5.1).
        """
        since = self._now()
        picking = _Picking(headers, subset, attributes, since)
        try:
            if body is None and not body_follows:
                return self._route(self._pick_without_body(headers, subset), picking)
            request = picking.request = _unread(headers) if body is None else self._parse(headers, body)
            for name in names.FAIRNESS_ID_HEADERS:
                if name in headers:
                    request.flow = headers[name] or request.flow
                    break
            if body is not None and request.target_model:
                picking.forwarded = with_model(body, request.target_model)
            picking.candidates = self._candidates(subset)  # an empty pool answers before anything is tokenized
            tokens = self._tokens(request, body)
            if tokens is None or isinstance(tokens, TokenizedRequest):
                return self._decided(tokens, picking)
        except RequestError as error:
            self._reporter.rejected(picking.request, error)
            raise
        except Exception as bug:
            logger.exception("picking failed: this is a bug in epp")
            raise self._failed(picking) from bug
        return self._pick_later(tokens, picking)

    async def _pick_later(self, tokens: Awaitable[TokenizedRequest], picking: _Picking) -> Route:
        try:
            awaited = await tokens
            picking.candidates = self._candidates(picking.subset)  # the pool may be another by now
            return self._decided(awaited, picking)
        except RequestError as error:
            self._reporter.rejected(picking.request, error)
            raise
        except Exception as bug:
            logger.exception("picking failed: this is a bug in epp")
            raise self._failed(picking) from bug

    def _tokens(self, request: InferenceRequest, body: bytes | None) -> TokenizedRequest | Awaitable[TokenizedRequest] | None:
        """None: nobody reads them."""
        if body is None:
            return TokenizedRequest(TokenState.ABSENT, reason=BODY_NOT_SENT)
        return None if self._tokenize is None else self._tokenize(request)

    def _decided(self, tokens: TokenizedRequest | None, picking: _Picking) -> Route:
        request = picking.request
        assert request is not None
        if tokens is not None:
            self._reporter.tokenized(request, tokens)
        return self._route(self._decide(request, tokens, picking), picking)

    def _route(self, decision: Decision, picking: _Picking) -> Route:
        """From here on the decision is in the books."""
        request = picking.request
        answer = AnswerSeen(decision, self._reporter, self._now, picking.since)
        self._open.add(OpenDecision(decision, answer, picking.since, picking.attributes))
        self._reporter.decided(decision)
        route = Route(
            decision.destination,
            decision.id,
            body=picking.forwarded,
            set_headers=() if picking.headers.get(names.REQUEST_ID) else ((names.REQUEST_ID, decision.request_id),),
            scores=_totals(decision.primary) if self._emit_scores else None,
            model_names=_names(request),
            listener=answer,
            stream=None if request is None or request.body is None else request.stream,
            skip_response=request is not None and request.skip_response,
        )
        decision.forget_prompts()
        return route

    def _failed(self, picking: _Picking) -> InternalError:
        """What the client is told of a bug."""
        failure = InternalError("picking failed")
        self._reporter.rejected(picking.request, failure)
        return failure

    def _decide(self, request: InferenceRequest, tokens: TokenizedRequest | None, picking: _Picking) -> Decision:
        started = self._now()
        decision_id, request_id = self._new_decision_id(), picking.headers.get(names.REQUEST_ID) or self._new_request_id()
        cycle = Cycle(request, tokens, picking.candidates, started, self._rng)
        only_if_cached = names.PREFER in picking.headers and _only_if_cached(picking.headers[names.PREFER])
        schedule = self._scheduler.schedule
        try:
            decision = schedule(cycle, decision_id=decision_id, request_id=request_id, only_if_cached=only_if_cached)
        except NoneOfKindError:
            listed = self._among_subset(self._snapshot().listed, picking.subset)
            if len(listed) == len(picking.candidates):
                raise
            # Of those that take connections none will do, as where all that decode take none: the fault may be ours.
            cycle = Cycle(request, tokens, listed, started, self._rng)
            decision = schedule(cycle, decision_id=decision_id, request_id=request_id, only_if_cached=only_if_cached)
        decision.duration_s = self._now() - started
        return decision

    def _pick_without_body(self, headers: Mapping[str, str], subset: Sequence[str] | None) -> Decision:
        """A GET says nothing to route by: any candidate will do (spec/protocol.md 2.3.3, with the subset honoured: D7)."""
        if not self._snapshot().endpoints:
            raise InternalError("no pods available in datastore")
        candidates = self._candidates(subset)
        chosen = ProfileResult(HEADER_ONLY_PROFILE, candidates, [], [], [self._rng.choice(candidates)])
        return Decision(
            self._new_decision_id(),
            headers.get(names.REQUEST_ID) or self._new_request_id(),
            chosen,
            {HEADER_ONLY_PROFILE: chosen},
            request=None,
            tokens=None,
            scheduled=candidates,
            decided_at=self._now(),
        )

    def _candidates(self, subset: Sequence[str] | None) -> Sequence[Endpoint]:
        """All that take connections, or those of them the data plane lists as "ip:port" or "ip" (spec/protocol.md 1.2, D6); never empty.

        Where none takes connections of those to choose from, all of these.
        """
        snapshot = self._snapshot()
        endpoints = self._among_subset(snapshot.endpoints, subset) or self._among_subset(snapshot.listed, subset)
        if not endpoints:
            raise ServiceUnavailableError(
                "failed to find endpoint candidates for serving the request", dropped_reason="rejected-no-endpoints"
            )
        return endpoints

    def _among_subset(self, endpoints: Sequence[Endpoint], subset: Sequence[str] | None) -> Sequence[Endpoint]:
        if subset is None or not self._honour_subset:
            return endpoints
        wanted = frozenset(subset)
        return [e for e in endpoints if e.host_port in wanted or e.address in wanted or f"[{e.address}]" in wanted]

    def _new_decision_id(self) -> DecisionId:
        return access_log.new_id(self._instance, self._new_id())

    def ended(self, end: RequestEnd) -> None:
        """Envoy's access log told the end of an answer."""
        if not self._open.ended(end):
            self._reporter.unmatched_end("unknown_decision" if end.decision_id else "no_decision")
        elif end_causes.NOT_CONNECTED in end.response_flags and end.served is not None and self._not_connected is not None:
            self._not_connected(end.served)

    def unmatched(self, reason: str) -> None:
        """An access-log entry that is none of ours."""
        self._reporter.unmatched_end(reason)

    def stream_closed(self, decision_id: DecisionId, closed: StreamClosed) -> None:
        """The ext_proc stream that made this decision is over."""
        self._open.stream_closed(decision_id, closed)

    def expire(self) -> int:
        """Close decisions whose end nobody will tell; returns how many. For the housekeeping, about once a second."""
        return self._open.expire()

    def _close(self, decision: Decision, end: RequestEnd) -> None:
        if decision.request is not None:
            self._scheduler.ended(decision, end)
        self._reporter.ended(decision, end)


def _unread(headers: Mapping[str, str]) -> InferenceRequest:
    """What is known of a request before its body: routed by load alone."""
    path = headers.get(names.PATH_HEADERS[0], names.DEFAULT_PATH)
    return InferenceRequest(Api.OPAQUE, path.partition("?")[0], "", None, size_bytes=0)


def _only_if_cached(preferences: str) -> bool:
    """Whether one of a comma list of preferences, each perhaps with a value and parameters, is "if-available" (spec/protocol.md 1.4.1)."""
    for preference in preferences.split(","):
        if preference.partition(";")[0].partition("=")[0].strip().lower() == names.IF_AVAILABLE:
            return True
    return False


def _totals(result: ProfileResult) -> Mapping[str, float] | None:
    """Of every candidate that was scored; None: none was."""
    return {endpoint.host_port: total for endpoint, total in zip(result.candidates, result.totals, strict=False)} or None


def _names(request: InferenceRequest | None) -> tuple[str, str] | None:
    """The model name in the answer and the one the client expects there, where they differ."""
    if request is None or request.target_model in ("", request.model):
        return None
    return request.target_model, request.model
