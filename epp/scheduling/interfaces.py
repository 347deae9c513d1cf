"""What a plugin may be. Protocols, so nothing has to be inherited; checked once at start-up, never per request.

A plugin implements any of the roles below (one class may hold several). All methods are synchronous and must not
block: between "tokens known" and "endpoint chosen" nothing is awaited. Called on the event loop only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from epp.domain import (
    Decision,
    DecisionId,
    Endpoint,
    EndpointId,
    PrefixMatch,
    ProfileResult,
    RequestEnd,
    TokenizedRequest,
    Usage,
)
from epp.scheduling.cycle import Cycle as Cycle  # noqa: PLC0414  # everybody takes it from here

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataKey(Generic[T]):
    """Names one kind of per-cycle data by type and producer, e.g. PrefixCacheMatchInfo/precise-prefix-cache-producer (spec/plugins.md 1.7)."""

    data: str
    producer: str


def prefix_match_key(producer: str) -> DataKey[PrefixMatch]:
    """Key of the PrefixMatch a prefix producer puts; its lists are parallel to `Cycle.endpoints`."""
    return DataKey("PrefixCacheMatchInfo", producer)


@dataclass(slots=True)
class InFlight:
    """Load this picker has sent and not yet seen end, parallel to `Cycle.endpoints`."""

    requests: list[int]
    tokens: list[int]


def in_flight_key(producer: str) -> DataKey[InFlight]:
    """Key of the InFlight an in-flight producer puts."""
    return DataKey("InFlightLoad", producer)


@runtime_checkable
class Filter(Protocol):
    """Removes candidates.

    A filter that judges by labels, so by what endpoints are and not by their load, says so with an attribute `by_labels = True`.
    Where such filters leave none of those that take connections, the request is scheduled among all that are listed;
    where others do, it ends with 429.
    """

    name: str

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """The candidates that may stay, in their order."""


@runtime_checkable
class Scorer(Protocol):
    """Rates candidates."""

    name: str

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        """One score in [0, 1] a candidate, same order; the profile clamps and weighs. Once per profile run."""


@runtime_checkable
class Picker(Protocol):
    """Chooses."""

    name: str

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        """One or more of the candidates (never none), best first."""


@runtime_checkable
class ProfileHandler(Protocol):
    """Decides which profiles run and which result is primary."""

    name: str

    def pick_profiles(self, cycle: Cycle, profiles: Sequence[str], results: dict[str, ProfileResult | None]) -> Sequence[str]:
        """Names of the profiles to run next; empty ends the loop. `results` holds what ran so far (None: it failed)."""

    def primary(self, cycle: Cycle, results: dict[str, ProfileResult | None]) -> str:
        """Name of the primary profile among the results."""


@runtime_checkable
class Producer(Protocol):
    """Computes per-cycle data from core state before filters run (spec/plugins.md 8)."""

    name: str

    def produces(self) -> Sequence[DataKey[Any]]:
        """The keys this producer puts."""

    def produce(self, cycle: Cycle) -> None:
        """Put the data. An exception is logged and counted; the request goes on without the data."""


@runtime_checkable
class Consumer(Protocol):
    """Declares the data a plugin reads; a missing one gets its default producer (spec/plugins.md 1.7)."""

    name: str

    def consumes(self) -> Sequence[DataKey[Any]]:
        """Keys without which the plugin makes no sense."""


@runtime_checkable
class PreRequest(Protocol):
    """Learns of each decision inside the same synchronous step, before the next one can be taken."""

    name: str

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        """Update own state (in-flight load, speculative blocks, LRU order)."""


@runtime_checkable
class PrefillObserver(Protocol):
    """Learns that an endpoint has computed a prompt, as its KV events show; not of requests whose blocks were all cached."""

    name: str

    def prefill_ended(self, decision_id: DecisionId, endpoint: EndpointId, now: float) -> None:
        """At most once a decision and endpoint, while its answer is under way; `now` in monotonic seconds."""


@runtime_checkable
class EndObserver(Protocol):
    """Learns of the end of each answer, exactly once per decision."""

    name: str

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        """Give back what `decided` took. The body and the token ids of the request are gone by now (`Decision.forget_prompts`)."""


@runtime_checkable
class EndpointObserver(Protocol):
    """Learns which endpoints exist."""

    name: str

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        """Forget everything about it."""


class PrefixHits(Protocol):
    """One lookup of a request's prompts in the index; keeps the block keys it computed, so that `speculate` need not."""

    tokens: list[int]
    """Hit tokens an engine would report, summed over the prompts, parallel to the endpoints asked for."""
    offloaded: dict[str, list[int]]
    """Those of them that are in other mediums than GPU memory, by medium."""


class PrefixIndex(Protocol):
    """What a prefix producer needs of the index (epp.kvcache.index implements it)."""

    def match(self, tokens: TokenizedRequest, endpoints: Sequence[EndpointId], now: float) -> PrefixHits:
        """Longest contiguous prefix each endpoint holds, confirmed or speculated and not expired at `now`."""

    def speculate(self, hits: PrefixHits, endpoint: EndpointId, until: float) -> None:
        """The endpoint is about to compute these prompts: count their full blocks as held until then, apart from confirmed ones."""

    def unspeculate(self, endpoint: EndpointId) -> None:
        """The endpoint failed a request, and may compute nothing: what is only speculated of it counts no longer."""

    def predict(
        self,
        hits: PrefixHits,
        endpoint: EndpointId,
        decision_id: DecisionId,
        model: str,
        now: float,
        ttl_s: float,
        *,
        reads_cache: bool,
    ) -> None:
        """The request goes to the endpoint: what that stores will be held against what was expected.

        `reads_cache` False: the engine computes its prompt anew, whatever is cached.
        `ttl_s`: what was speculated for it lives so long, and again until its prefill has been seen to end; 0: nothing was.
        """

    def answer_ended(self, decision_id: DecisionId, *, served: bool, said: Usage | None) -> None:
        """Nothing more will be stored for this request.

        `served`: the endpoint it went to has answered it; `said`: what of the answer's usage can be held against what was expected.
        """
