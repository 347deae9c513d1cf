"""Hit tokens as an engine's counters tell them, held against those that were foreseen.

An engine counts the prompt tokens it looks up in its cache, and those it finds, for all requests together. So what some
requests must have found, because it was taken to be there, is compared with how far the counter went between two scrapes
around all of them: decided after the one, and answered well before the other. Whatever else the engine served meanwhile, ours or
past us, can only make the counter go further, so a shortfall is one; much traffic past us can hide it. Where the
counter of lookups grew by less than these prompts, they were not all looked up, and nothing is said.

Pure; used by `parity`, on the event loop. Cost: nothing to speak of a scrape.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from epp.domain import EndpointId, EndpointMetrics
from epp.kvcache.predictions import Answered

# Requests with foreseen hits that are compared at a time.
REQUESTS: Final = 16
# An engine counts what it looks up before it answers; a page that was on its way meanwhile may be older than the answer.
SETTLE_S: Final = 1.0
# Older comparisons are given up: an endpoint with little traffic.
MAX_AGE_S: Final = 600.0
_MAX_WAITING: Final = 4 * REQUESTS
# Rounding aside, lookups cover the prompts that were looked up.
_COVERED: Final = 0.95


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of one comparison, over REQUESTS requests."""

    model: str
    """The one most of them asked for."""
    expected: int
    """Hit tokens foreseen at least."""
    found: int
    """Hit tokens counted, those of other requests included."""


@dataclass(slots=True)
class _Comparison:
    since: float
    queries: float
    hits: float
    waiting: deque[Answered] = field(default_factory=deque)
    """Answered lately, in order."""
    requests: int = 0
    prompt_tokens: int = 0
    expected: int = 0
    models: Counter[str] = field(default_factory=Counter)


class CountedHits:
    """One comparison at a time for each endpoint."""

    def __init__(self) -> None:
        self._open: dict[EndpointId, _Comparison] = {}

    def answered(self, answered: Answered) -> None:
        """A request was answered."""
        comparison = self._open.get(answered.endpoint)
        if comparison is None or not answered.foreseen or answered.decided_at <= comparison.since:
            return
        if len(comparison.waiting) < _MAX_WAITING:
            comparison.waiting.append(answered)

    def scraped(self, endpoint: EndpointId, metrics: EndpointMetrics) -> Counted | None:
        """What the engine's metrics say now; the comparison this completes."""
        queries, hits, at = metrics.prefix_queries, metrics.prefix_hits, metrics.updated_at
        if queries is None or hits is None or at is None:
            self._open.pop(endpoint, None)
            return None
        now = self._open.get(endpoint)
        if now is None or queries < now.queries or hits < now.hits or at - now.since > MAX_AGE_S:
            self._open[endpoint] = _Comparison(at, queries, hits)
            return None
        while now.waiting and now.requests < REQUESTS and now.waiting[0].ended_at <= at - SETTLE_S:
            one = now.waiting.popleft()
            now.requests += 1
            now.prompt_tokens += one.prompt_tokens
            now.expected += one.foreseen
            now.models[one.model] += 1
        if now.requests < REQUESTS:
            return None
        self._open[endpoint] = _Comparison(at, queries, hits)
        if queries - now.queries < now.prompt_tokens * _COVERED:
            return None
        return Counted(now.models.most_common(1)[0][0], now.expected, int(hits - now.hits))

    def forget(self, endpoint: EndpointId) -> None:
        """It restarted, cleared its cache or is gone: begin anew."""
        self._open.pop(endpoint, None)
