"""A director over a few endpoints, with a clock that stands still until told otherwise, and everything it told."""

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from epp._proto import ext_proc_pb2 as pb
from epp.datastore import EndpointsListed, PoolState
from epp.domain import (
    Api,
    Decision,
    DecisionId,
    Endpoint,
    EndpointId,
    InferenceRequest,
    ProfileResult,
    RequestEnd,
    StreamClosed,
    TokenizedRequest,
    TokenState,
)
from epp.errors import BadRequestError, RequestError
from epp.extproc.events import Route
from epp.names import ROLE_LABEL
from epp.picking import Director
from epp.reporter import Reporter
from epp.requests import RequestParsers
from epp.scheduling.interfaces import Cycle, Filter
from epp.scheduling.profile import Profile
from epp.scheduling.scheduler import Scheduler
from epp.testing.waiting import awaited


def _attributes(nanoseconds: str, address: str) -> bytes:
    time = datetime.fromtimestamp(int(nanoseconds) / 1e9, UTC).isoformat()
    entry = pb.ProcessingRequest.AttributesEntry(key="envoy.filters.http.ext_proc")
    entry.value.update({"request.time": time, "source.address": address})
    return entry.SerializeToString()


class FirstPicker:
    """Takes the first candidate."""

    name = "first"

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        return [candidates[0]]


class LastByte:
    """Scores an endpoint by the last byte of its address."""

    name = "last-byte"

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        return [int(endpoint.address.rpartition(".")[2]) / 256 for endpoint in candidates]


class OneProfile:
    """Runs the only profile once."""

    name = "one"

    def pick_profiles(self, cycle: Cycle, profiles: Sequence[str], results: dict[str, ProfileResult | None]) -> Sequence[str]:
        return () if results else profiles

    def primary(self, cycle: Cycle, results: dict[str, ProfileResult | None]) -> str:
        return "default"


class Ledger:
    """A plugin that counts what is in flight."""

    name = "ledger"

    def __init__(self) -> None:
        self.in_flight = 0

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        self.in_flight += 1

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        self.in_flight -= 1


class Recorder(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.ends: list[RequestEnd] = []
        self.rejections: list[RequestError] = []
        self.unmatched: list[str] = []
        self.without_tokens: list[str | None] = []
        self.gaps: list[float] = []

    def tokenized(self, request: InferenceRequest, tokens: TokenizedRequest) -> None:
        self.without_tokens.append(tokens.reason)

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        self.ends.append(end)

    def chunks_came(self, decision: Decision, gaps_s: Sequence[float]) -> None:
        self.gaps += gaps_s

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        self.rejections.append(error)

    def unmatched_end(self, reason: str) -> None:
        self.unmatched.append(reason)


class Rig:
    """The director and its surroundings."""

    def __init__(
        self,
        *addresses: str,
        real_parser: bool = False,
        emit_scores: bool = False,
        tokenize: bool = True,
        roles: Sequence[str] = (),
        filters: Sequence[Filter] = (),
    ) -> None:
        """`roles` of the endpoints, in their order, where there are any."""
        self.time = 1000.0
        self.ledger = Ledger()
        self.recorder = Recorder()
        self.pool = PoolState()
        labels = [{ROLE_LABEL: role} for role in roles] or [{} for _ in addresses]
        endpoints = [Endpoint(EndpointId(address), address, 8000, said) for address, said in zip(addresses, labels, strict=True)]
        self.pool.apply(EndpointsListed(endpoints))
        self.not_connected: list[str] = []
        ids = itertools.count(1)
        scorers = [(LastByte(), 2.0)] if emit_scores else []
        profile = Profile("default", filters, scorers, FirstPicker(), self.recorder)
        self.director = Director(
            parse=RequestParsers().parse if real_parser else _parse,
            tokenize=_no_tokens if tokenize else None,
            snapshot=self.pool.snapshot,
            scheduler=Scheduler({"default": profile}, OneProfile(), [], [self.ledger], self.recorder),
            reporter=self.recorder,
            now=lambda: self.time,
            rng=random.Random(1),
            new_id=lambda: f"id-{next(ids)}",
            new_request_id=lambda: f"request-{next(ids)}",
            instance="me",
            emit_scores=emit_scores,
            not_connected=self.not_connected.append,
        )

    @property
    def causes(self) -> list[str]:
        """Of the ends so far, in order."""
        return [end.cause.value for end in self.recorder.ends]

    def route(
        self,
        body: bytes | None = b"{}",
        headers: Mapping[str, str] | None = None,
        *,
        subset: Sequence[str] | None = None,
        follows: bool = False,
        origin: str | None = None,
    ) -> Route:
        """Pick. `origin` as `epp.extproc.origin` writes it."""
        attributes = None if origin is None else _attributes(*origin.split("|"))
        return asyncio.run(awaited(self.director.pick(headers or {}, subset, body, body_follows=follows, attributes=attributes)))

    def pick(self, origin: str | None = None) -> DecisionId:
        """Pick for any request."""
        return self.route(origin=origin).decision_id

    def close(
        self,
        decision: DecisionId,
        *,
        routed: bool = True,
        seen: bool = False,
        complete: bool = False,
        logged: bool = False,
        bodies: bool = False,
    ) -> None:
        """The stream is over."""
        closed = StreamClosed(routed=routed, response_seen=seen or complete, response_complete=complete, logged=logged, bodies_sent=bodies)
        self.director.stream_closed(decision, closed)

    def expire_after(self, seconds: float) -> int:
        """Let time pass."""
        self.time += seconds
        return self.director.expire()


def _parse(headers: Mapping[str, str], body: bytes) -> InferenceRequest:
    if body == b"bad":
        raise BadRequestError("no JSON")
    return InferenceRequest(Api.COMPLETIONS, "/v1/completions", "m", {}, len(body))


async def _no_tokens(request: InferenceRequest) -> TokenizedRequest:
    return TokenizedRequest(TokenState.ABSENT, reason="test")
