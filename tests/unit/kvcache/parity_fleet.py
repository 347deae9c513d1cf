"""A picker and two engines as far as parity is concerned: requests are picked, events come as payloads, answers come by and end.

The director, scheduler, precise producer, reading of usage, decoding of events, index, predictions and monitor are the real ones;
engines are engine.Engine, and the clock is told the time.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from epp.datastore import EndpointsListed, PoolState
from epp.domain import (
    Api,
    DecisionId,
    EndCause,
    Endpoint,
    EndpointId,
    EndpointMetrics,
    InferenceRequest,
    ParityLoss,
    RequestEnd,
    TokenizedRequest,
    TokenState,
    Usage,
)
from epp.extproc.events import AnswerListener, Route
from epp.kvcache.events import decode
from epp.kvcache.index import PrefixIndex
from epp.kvcache.parity import ParityMonitor
from epp.kvcache.predictions import SETTLE_S, Predictions, PrefillEnded
from epp.picking import Director
from epp.plugins.producers.precise_prefix_cache import PrecisePrefixCacheParams, PrecisePrefixCacheProducer
from epp.reporter import Reporter
from epp.scheduling.params import Duration
from epp.scheduling.profile import Profile
from epp.scheduling.registry import Collaborators
from epp.scheduling.scheduler import Scheduler
from tests.unit.kvcache.engine import Engine
from tests.unit.picking.rig import FirstPicker, OneProfile

PODS = [EndpointId("ns/a"), EndpointId("ns/b")]
ENDPOINTS = [Endpoint(pod, f"10.0.0.{i}", 8000) for i, pod in enumerate(PODS)]
SYSTEM = list(range(1000, 1070))


@dataclass
class Recorder(Reporter):
    """What the monitor told."""

    verdicts: Counter[str] = field(default_factory=Counter)
    lost: list[ParityLoss] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    """Models that were seen to fit again."""
    over: list[str] = field(default_factory=list)
    """Models whose alarm ended because what it was about is no more."""
    counts: Counter[bool] = field(default_factory=Counter)
    counted: list[tuple[int, int]] = field(default_factory=list)

    def parity_settled(self, endpoint: EndpointId, model: str, verdict: str) -> None:
        self.verdicts[verdict] += 1

    def prompt_tokens_compared(self, endpoint: EndpointId, model: str, more: int) -> None:
        self.counts[not more] += 1

    def hits_counted(self, endpoint: EndpointId, expected: int, found: int) -> None:
        self.counted.append((expected, found))

    def parity_lost(self, loss: ParityLoss) -> None:
        self.lost.append(loss)

    def parity_restored(self, model: str) -> None:
        self.restored.append(model)

    def parity_forgotten(self, model: str) -> None:
        self.over.append(model)


class Fleet:
    """Two engines and who holds them against what was expected."""

    def __init__(self, *, capacity: int = 10_000, engine_block_size: int = 16, endpoints: Sequence[Endpoint] = ENDPOINTS) -> None:
        self.now = 0.0
        self.told = Recorder()
        self.stale: list[EndpointId] = []
        self.prefills: list[PrefillEnded] = []
        self.monitor = ParityMonitor(self.told, stale=self.stale.append)
        predictions = Predictions(
            lambda: self.now,
            outcomes=self.monitor,
            prefill_ended=self.prefills.append,
        )
        self.index = PrefixIndex(Reporter(), default_block_size=16, predictions=predictions)
        self.endpoints = endpoints
        self.engines = {
            endpoint.id: Engine(self._publisher(endpoint.id), capacity=capacity, block_size=engine_block_size, seed=i)
            for i, endpoint in enumerate(endpoints)
        }
        self._pool = PoolState()
        self._pool.apply(EndpointsListed(endpoints))
        self._directors: dict[float, Director] = {}
        """By the life of what they speculate."""
        self._open: dict[DecisionId, tuple[Director, AnswerListener]] = {}
        self._ids = itertools.count()

    def _publisher(self, pod: EndpointId) -> Callable[[bytes], None]:
        return lambda payload: self.index.apply(pod, 0, decode(payload))

    def decide(
        self,
        tokens: Sequence[int],
        pod: EndpointId,
        *,
        lora: str | None = None,
        salt: str | None = None,
        ttl_s: float = 0.0,
        api: Api = Api.CHAT,
        body: dict[str, object] | None = None,
        model: str = "m",
    ) -> DecisionId:
        """A request with these tokens, as we take them to be, goes to a pod."""
        request = InferenceRequest(api, "/", model, body or {}, 100, cache_salt=salt)
        tokenized = TokenizedRequest(TokenState.EXACT, [list(tokens)], lora=lora, cache_salt=salt)
        self._coming = request, tokenized
        director = self._directors.get(ttl_s) or self._direct(ttl_s)
        address = next(endpoint.host_port for endpoint in self.endpoints if endpoint.id == pod)
        route = director.pick({}, [address], b"{}")
        assert isinstance(route, Route)
        assert route.listener is not None
        decision_id = DecisionId(route.decision_id)
        self._open[decision_id] = director, route.listener
        return decision_id

    def answer(self, decision_id: DecisionId, usage: Usage | None = None, **end: object) -> None:
        """Its answer comes by, if `usage` is given, and ends."""
        director, listener = self._open.pop(decision_id)
        if usage is not None:
            details = {} if usage.cached_tokens is None else {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
            listener.began(200, event_stream=False)
            listener.body(json.dumps({"choices": [], "usage": {"prompt_tokens": usage.prompt_tokens, **details}}).encode())
        director.ended(replace(RequestEnd(decision_id, EndCause.FINISHED, status=200), **end))  # type: ignore[arg-type]  # a field's

    def _direct(self, ttl_s: float) -> Director:
        """The director of a picker that speculates for so long; 0: not at all."""
        params = PrecisePrefixCacheParams(speculative_indexing=ttl_s > 0, speculative_ttl=Duration(ttl_s))
        producer = PrecisePrefixCacheProducer("p", params, Collaborators(self.index))
        profile = Profile("default", [], [], FirstPicker(), self.told)
        self._directors[ttl_s] = director = Director(
            parse=lambda _headers, _body: self._coming[0],
            tokenize=lambda _: self._coming[1],
            snapshot=self._pool.snapshot,
            scheduler=Scheduler({"default": profile}, OneProfile(), [producer], [producer], self.told),
            reporter=self.told,
            now=lambda: self.now,
            rng=random.Random(1),
            new_id=lambda: str(next(self._ids)),
            new_request_id=lambda: "r",
        )
        return director

    def end(self, *decisions: DecisionId, usage: Usage | None = None) -> None:
        """Their answers end, and time passes."""
        for decision in decisions:
            self.answer(decision, usage)
        self.now += SETTLE_S + 0.1
        self.index.sweep(self.now)

    def serve(self, ours: Sequence[int], pod: EndpointId, theirs: Sequence[int] | None = None, *, tells: bool = False) -> None:
        """One request from decision to settlement; the engine makes `theirs` of it. `tells`: its answer comes by, with its usage."""
        decision = self.decide(ours, pod, ttl_s=2.0)
        theirs = ours if theirs is None else theirs
        cached = self.engines[pod].run(theirs, range(30))
        self.end(decision, usage=Usage(prompt_tokens=len(theirs), cached_tokens=cached) if tells else None)
        self.scrape()

    def scrape(self) -> None:
        """/metrics of every engine are read."""
        for pod, engine in self.engines.items():
            self.monitor.scraped(pod, EndpointMetrics(prefix_queries=engine.queries, prefix_hits=engine.hits, updated_at=self.now))


def chat(rng: random.Random, length: int = 120) -> list[int]:
    """A system prompt that many share, and what one user says."""
    return [*SYSTEM, *(rng.randrange(5000, 90_000) for _ in range(length))]


def warm_up(fleet: Fleet, rng: random.Random, requests: int = 20) -> None:
    """Healthy traffic, so that caches hold the system prompt and comparisons have begun."""
    for number in range(requests):
        fleet.serve(chat(rng), PODS[number % 2])
    assert not fleet.told.lost
