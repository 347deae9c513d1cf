"""The director's books: every decision that is opened is closed exactly once, and every refusal is the documented one."""

import asyncio
import itertools
import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from epp.datastore import EndpointsListed, PoolState
from epp.domain import (
    Api,
    Decision,
    DecisionId,
    EndCause,
    Endpoint,
    EndpointId,
    InferenceRequest,
    ProfileResult,
    RequestEnd,
    TokenizedRequest,
    TokenState,
)
from epp.errors import BadRequestError, InternalError, RequestError, ServiceUnavailableError
from epp.picking import ABANDONED_GRACE_S, MAX_AGE_S, SILENT_GRACE_S, Director
from epp.reporter import Reporter
from epp.scheduling.interfaces import Cycle
from epp.scheduling.profile import Profile
from epp.scheduling.scheduler import Scheduler

T = TypeVar("T")


class FirstPicker:
    """Takes the first candidate."""

    name = "first"

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        return [candidates[0]]


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
        self.ends: list[EndCause] = []
        self.rejections: list[RequestError] = []
        self.unmatched: list[str] = []

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        self.ends.append(end.cause)

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        self.rejections.append(error)

    def unmatched_end(self, reason: str) -> None:
        self.unmatched.append(reason)


class Rig:
    """A director over two endpoints, with a clock that stands still until told otherwise."""

    def __init__(self, *addresses: str) -> None:
        self.time = 1000.0
        self.access_loggers = 0
        self.ledger = Ledger()
        self.recorder = Recorder()
        self.pool = PoolState()
        self.pool.apply(EndpointsListed([Endpoint(EndpointId(address), address, 8000) for address in addresses]))
        ids = itertools.count(1)
        profile = Profile("default", [], [], FirstPicker(), self.recorder)
        self.director = Director(
            parse=_parse,
            tokenize=_no_tokens,
            snapshot=self.pool.snapshot,
            scheduler=Scheduler({"default": profile}, OneProfile(), [], [self.ledger], self.recorder),
            reporter=self.recorder,
            now=lambda: self.time,
            rng=random.Random(1),
            new_id=lambda: f"id-{next(ids)}",
            access_loggers=lambda: self.access_loggers,
        )

    def pick(self, subset: Sequence[str] | None = None, body: bytes | None = b"{}", **headers: str) -> tuple[str, DecisionId]:
        route = _run(self.director.pick({name.replace("_", "-"): value for name, value in headers.items()}, subset, body))
        return route.destination, route.decision_id


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def _parse(headers: Mapping[str, str], body: bytes) -> InferenceRequest:
    if body == b"bad":
        raise BadRequestError("no JSON")
    return InferenceRequest(Api.COMPLETIONS, "/v1/completions", "m", None, len(body))


async def _no_tokens(request: InferenceRequest) -> TokenizedRequest:
    return TokenizedRequest(TokenState.ABSENT, reason="test")


@pytest.mark.parametrize(
    ("subset", "destination"),
    [
        (None, "10.0.0.1:8000"),
        (["10.0.0.2:8000"], "10.0.0.2:8000"),
        (["10.0.0.2"], "10.0.0.2:8000"),
        (["10.9.9.9:1", "10.0.0.2:8000"], "10.0.0.2:8000"),
        (["fd00::1"], "[fd00::1]:8000"),
        (["[fd00::1]:8000"], "[fd00::1]:8000"),
    ],
)
def test_a_subset_is_honoured_by_address_and_port(subset: list[str] | None, destination: str) -> None:
    """Both the ip:port and the ip form restrict the choice, with and without a body."""
    rig = Rig("10.0.0.1", "10.0.0.2", "fd00::1")

    assert rig.pick(subset)[0] == destination
    if subset is not None:
        assert rig.pick(subset, body=None)[0] == destination


@pytest.mark.parametrize("subset", [[], ["10.0.0.1:9999"], ["10.0.0.10"]])
def test_a_subset_that_matches_nothing_is_503(subset: list[str]) -> None:
    """Proposal 004: an empty or unmatched subset is answered with 503, for requests with and without a body."""
    rig = Rig("10.0.0.1")

    for body in (b"{}", None):
        with pytest.raises(ServiceUnavailableError) as refusal:
            rig.pick(subset, body)
        assert refusal.value.dropped_reason == "rejected-no-endpoints"
    assert len(rig.recorder.rejections) == 2
    assert rig.director.open_decisions == 0


def test_an_empty_pool_is_503_with_a_body_and_500_without() -> None:
    """Rows 12 and 1 of the table of failures."""
    rig = Rig()

    with pytest.raises(ServiceUnavailableError):
        rig.pick()
    with pytest.raises(InternalError, match="no pods available in datastore"):
        rig.pick(body=None)


def test_a_body_that_cannot_be_parsed_is_reported_and_raised() -> None:
    """The client gets its 400, and nothing stays open."""
    rig = Rig("10.0.0.1")

    with pytest.raises(BadRequestError):
        rig.pick(body=b"bad")

    assert [error.http_status for error in rig.recorder.rejections] == [400]
    assert rig.director.open_decisions == 0


def test_a_request_without_an_id_gets_one_that_travels_upstream() -> None:
    """A present x-request-id is left alone; an absent or empty one is generated and set."""
    rig = Rig("10.0.0.1")

    generated = _run(rig.director.pick({"x-request-id": ""}, None, b"{}"))
    given = _run(rig.director.pick({"x-request-id": "mine"}, None, b"{}"))

    assert [name for name, _ in generated.set_headers] == ["x-request-id"]
    assert given.set_headers == ()


def test_the_access_log_closes_a_decision_once() -> None:
    """A second entry, or one of another picker, is counted and changes nothing."""
    rig = Rig("10.0.0.1")
    rig.access_loggers = 1
    _, decision = rig.pick()
    rig.director.stream_closed(decision, routed=True, response_seen=False, response_complete=False)
    assert rig.ledger.in_flight == 1

    rig.director.ended(RequestEnd(decision, EndCause.FINISHED, status=200))
    rig.director.ended(RequestEnd(decision, EndCause.FINISHED, status=200))
    rig.director.unmatched("no_decision")

    assert rig.ledger.in_flight == 0
    assert rig.recorder.ends == [EndCause.FINISHED]
    assert rig.recorder.unmatched == ["unknown_decision", "no_decision"]


@pytest.mark.parametrize(("complete", "cause"), [(True, EndCause.FINISHED), (False, EndCause.CLIENT_GONE)])
def test_without_an_access_log_the_stream_of_a_response_tells_its_end(complete: bool, cause: EndCause) -> None:  # noqa: FBT001  # a table
    """Gateways that send responses through ext_proc need no access log."""
    rig = Rig("10.0.0.1")
    _, decision = rig.pick()

    rig.director.stream_closed(decision, routed=True, response_seen=True, response_complete=complete)

    assert rig.ledger.in_flight == 0
    assert rig.recorder.ends == [cause]


def test_a_silent_stream_waits_for_the_log_and_is_given_up_without_one() -> None:
    """Envoy's log connects with its first entry, after the first streams ended; where none comes, load must not pile up."""
    rig = Rig("10.0.0.1")
    _, first = rig.pick()
    _, second = rig.pick()
    rig.director.stream_closed(first, routed=True, response_seen=False, response_complete=False)
    rig.director.stream_closed(second, routed=True, response_seen=False, response_complete=False)

    rig.director.ended(RequestEnd(first, EndCause.FINISHED))
    assert rig.director.expire() == 0
    rig.time += SILENT_GRACE_S + 1

    assert rig.director.expire() == 1
    assert rig.recorder.ends == [EndCause.FINISHED, EndCause.AGED_OUT]
    assert rig.ledger.in_flight == 0


def test_a_client_that_left_before_the_answer_was_out_is_given_back_soon() -> None:
    """Envoy logs such a request without our decision, so the log cannot close it, connected or not."""
    rig = Rig("10.0.0.1")
    rig.access_loggers = 1
    _, told = rig.pick()
    _, untold = rig.pick()
    for decision in (told, untold):
        rig.director.stream_closed(decision, routed=False, response_seen=False, response_complete=False)

    rig.director.ended(RequestEnd(told, EndCause.CLIENT_GONE))
    assert rig.director.expire() == 0
    rig.time += ABANDONED_GRACE_S + 0.1

    assert rig.director.expire() == 1
    assert rig.recorder.ends == [EndCause.CLIENT_GONE, EndCause.CLIENT_GONE]
    assert rig.ledger.in_flight == 0


def test_a_bug_in_the_decision_is_500_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets a status, not a stream that hangs or ends without a word."""
    rig = Rig("10.0.0.1")
    monkeypatch.setattr(rig.director, "_scheduler", None)

    with pytest.raises(InternalError, match="picking failed"):
        rig.pick()

    assert [error.http_status for error in rig.recorder.rejections] == [500]
    assert rig.director.open_decisions == 0


def test_an_end_that_nobody_tells_is_bounded_in_age() -> None:
    """A lost log entry, or an Envoy that died, does not count against an endpoint for ever."""
    rig = Rig("10.0.0.1")
    rig.access_loggers = 1
    _, lost = rig.pick()
    rig.director.stream_closed(lost, routed=True, response_seen=False, response_complete=False)
    rig.time += MAX_AGE_S / 2
    rig.pick()
    rig.time += MAX_AGE_S / 2 + 1

    assert rig.director.expire() == 1
    assert rig.ledger.in_flight == 1
    assert rig.director.open_decisions == 1


def test_a_request_without_a_body_is_not_counted_as_load() -> None:
    """GET /v1/models costs a model server nothing that a scorer weighs."""
    rig = Rig("10.0.0.1")
    _, decision = rig.pick(body=None)

    assert rig.ledger.in_flight == 0
    rig.director.ended(RequestEnd(decision, EndCause.FINISHED))
    assert rig.recorder.ends == [EndCause.FINISHED]
