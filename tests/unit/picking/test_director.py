"""Picking: every refusal is the documented one, and a route says what is changed on the way."""

from collections.abc import Sequence

import pytest

from epp.datastore import EndpointReached
from epp.domain import EndCause, Endpoint, EndpointId, RequestEnd
from epp.errors import BadRequestError, InternalError, PreconditionFailedError, ResourceExhaustedError, ServiceUnavailableError
from epp.plugins.filters.decode import DecodeFilter
from epp.scheduling.interfaces import Cycle, Filter
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators
from tests.unit.picking.rig import Rig


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
    """Both the ip:port and the ip form restrict the choice, with a body, without one, and before one."""
    rig = Rig("10.0.0.1", "10.0.0.2", "fd00::1")

    assert rig.route(subset=subset).destination == destination
    assert rig.route(None, follows=True, subset=subset).destination == destination
    if subset is not None:
        assert rig.route(None, subset=subset).destination == destination


@pytest.mark.parametrize("subset", [[], ["10.0.0.1:9999"], ["10.0.0.10"]])
def test_a_subset_that_matches_nothing_is_503(subset: list[str]) -> None:
    """Proposal 004: an empty or unmatched subset is answered with 503, for requests with and without a body."""
    rig = Rig("10.0.0.1")

    for body, follows in ((b"{}", False), (None, False), (None, True)):
        with pytest.raises(ServiceUnavailableError) as refusal:
            rig.route(body, follows=follows, subset=subset)
        assert refusal.value.dropped_reason == "rejected-no-endpoints"
    assert len(rig.recorder.rejections) == 3
    assert rig.director.open_decisions == 0


@pytest.mark.parametrize(
    ("unreachable", "subset", "chosen"),
    [
        ("1", None, "2"),
        ("1", "12", "2"),
        ("1", "1", "1"),
        ("12", "12", "1"),
        ("12", "23", "3"),
        ("12", "2", "2"),
        ("123", "2", "2"),
        ("123", None, "1"),
    ],
)
def test_a_subset_of_endpoints_that_take_no_connections_is_one_to_choose_from(unreachable: str, subset: str | None, chosen: str) -> None:
    """Of what the data plane names those that take connections; all it names where none does, as the fault may be ours."""
    rig = Rig("10.0.0.1", "10.0.0.2", "10.0.0.3")
    for host in unreachable:
        rig.pool.apply(EndpointReached(EndpointId(f"10.0.0.{host}"), reachable=False))
    named = None if subset is None else [f"10.0.0.{host}" for host in subset]
    assert rig.route(subset=named).destination == f"10.0.0.{chosen}:8000"
    assert rig.route(None, follows=True, subset=named).destination == f"10.0.0.{chosen}:8000"
    if subset == chosen:
        assert rig.route(None, subset=named).destination == f"10.0.0.{chosen}:8000"


@pytest.mark.parametrize(
    ("roles", "unreachable", "subset", "chosen"),
    [
        ("p d d", "2", None, "3"),
        ("p d d", "23", None, "2"),
        ("p d b", "2", None, "3"),
        ("p d b", "23", "13", "3"),
        ("p d d", "123", None, "2"),
        ("p d d", "12", "12", "2"),
        ("p p d", "", "12", None),
        ("p p d", "3", "12", None),
        ("p p p", "1", None, None),
    ],
)
def test_where_all_that_decode_take_no_connections_they_are_to_choose_from(
    roles: str, unreachable: str, subset: str | None, chosen: str | None
) -> None:
    """As with a subset: the fault may be ours, and a request that must be decoded has nobody else. 429 where none is listed."""
    names = {"p": "prefill", "d": "decode", "b": "both"}
    rig = Rig(
        *("10.0.0.1", "10.0.0.2", "10.0.0.3"),
        roles=[names[role] for role in roles.split()],
        filters=[DecodeFilter("decode", NoParams(), Collaborators())],
    )
    for host in unreachable:
        rig.pool.apply(EndpointReached(EndpointId(f"10.0.0.{host}"), reachable=False))
    named = None if subset is None else [f"10.0.0.{host}" for host in subset]
    if chosen is None:
        with pytest.raises(ResourceExhaustedError):
            rig.route(subset=named)
        assert [error.http_status for error in rig.recorder.rejections] == [429]
    else:
        assert rig.route(subset=named).destination == f"10.0.0.{chosen}:8000"
        assert rig.ledger.in_flight == 1


class Headroom:
    """Drops the endpoints that it takes for saturated."""

    name = "headroom"

    def __init__(self, saturated: str) -> None:
        self._saturated = saturated

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        return [endpoint for endpoint in candidates if endpoint.address[-1] not in self._saturated]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("roles", "saturated", "unreachable", "chosen"),
    [
        (["both"] * 3, "123", "", None),
        (["both"] * 3, "12", "3", None),
        (["both"] * 3, "1", "3", "2"),
        (["prefill", "decode", "decode"], "2", "3", None),
        (["prefill", "decode", "decode"], "", "23", "2"),
        (["prefill", "decode", "decode"], "2", "23", "3"),
        (["prefill", "decode", "decode"], "1", "23", "2"),
        (["prefill", "decode", "decode"], "23", "23", None),
    ],
)
def test_shed_load_does_not_go_where_nobody_listens(
    order: int, roles: Sequence[str], saturated: str, unreachable: str, chosen: str | None
) -> None:
    """Who is saturated now may have room later: that is 429, and only where nobody of a kind takes connections is it tried nevertheless."""
    filters: list[Filter] = [DecodeFilter("decode", NoParams(), Collaborators()), Headroom(saturated)]
    rig = Rig("10.0.0.1", "10.0.0.2", "10.0.0.3", roles=roles, filters=filters[::order])
    for host in unreachable:
        rig.pool.apply(EndpointReached(EndpointId(f"10.0.0.{host}"), reachable=False))
    if chosen is None:
        with pytest.raises(ResourceExhaustedError):
            rig.route()
    else:
        assert rig.route().destination == f"10.0.0.{chosen}:8000"


def test_an_empty_pool_is_503_with_a_body_and_500_without() -> None:
    """Rows 12 and 1 of the table of failures; a body that is still to come is a body."""
    rig = Rig()

    with pytest.raises(ServiceUnavailableError):
        rig.route()
    with pytest.raises(ServiceUnavailableError):
        rig.route(None, follows=True)
    with pytest.raises(InternalError, match="no pods available in datastore"):
        rig.route(None)


def test_a_body_that_cannot_be_parsed_is_reported_and_raised() -> None:
    """The client gets its 400, and nothing stays open."""
    rig = Rig("10.0.0.1")

    with pytest.raises(BadRequestError):
        rig.route(b"bad")

    assert [error.http_status for error in rig.recorder.rejections] == [400]
    assert rig.director.open_decisions == 0


@pytest.mark.parametrize("tokenize", [True, False])
def test_a_request_routed_before_its_body_is_load_without_tokens(tokenize: bool) -> None:  # noqa: FBT001  # a table
    """Where the data plane sends the body too late, load decides, the request counts as load, and the lack of tokens is counted."""
    rig = Rig("10.0.0.1", tokenize=tokenize)

    route = rig.route(None, follows=True)

    assert (route.body, route.stream) == (None, None)
    assert rig.ledger.in_flight == 1
    assert rig.recorder.without_tokens == ["body_not_sent"]


def test_a_request_without_an_id_gets_one_that_travels_upstream() -> None:
    """A present x-request-id is left alone; an absent or empty one is generated and set."""
    rig = Rig("10.0.0.1")

    generated = rig.route(headers={"x-request-id": ""})
    given = rig.route(headers={"x-request-id": "mine"})

    assert [name for name, _ in generated.set_headers] == ["x-request-id"]
    assert given.set_headers == ()


@pytest.mark.parametrize("prefer", ["if-available", "If-Available; q=1", "respond-async, wait=10 , if-available", "if-available=yes"])
def test_who_prefers_a_cached_prefix_gets_412_where_there_is_none(prefer: str) -> None:
    """`prefer: if-available` (RFC 7240): row 17 of the table of failures; nothing stays open or counted."""
    rig = Rig("10.0.0.1")

    with pytest.raises(PreconditionFailedError, match="no decode worker has the requested KV cache"):
        rig.route(headers={"prefer": prefer})

    assert (rig.director.open_decisions, rig.ledger.in_flight) == (0, 0)
    assert [(error.http_status, error.code) for error in rig.recorder.rejections] == [(412, "PreconditionFailed")]


@pytest.mark.parametrize("prefer", ["", "respond-async", "wait=if-available", "if-available-not", 'foo="x"; if-available'])
def test_other_preferences_are_not_ours(prefer: str) -> None:
    """The request is served, and so is a GET, which has no prefix."""
    rig = Rig("10.0.0.1")

    assert rig.route(headers={"prefer": prefer}).destination == "10.0.0.1:8000"
    assert rig.route(None, {"prefer": "if-available"}).destination == "10.0.0.1:8000"


@pytest.mark.parametrize(
    ("headers", "flow"),
    [
        ({}, "default-flow"),
        ({"x-gateway-inference-fairness-id": "old"}, "old"),
        ({"x-llm-d-inference-fairness-id": "new", "x-gateway-inference-fairness-id": "old"}, "new"),
        ({"x-llm-d-inference-fairness-id": ""}, "default-flow"),
    ],
)
@pytest.mark.parametrize("follows", [True, False])
def test_a_request_says_whose_it_is(headers: dict[str, str], flow: str, follows: bool) -> None:  # noqa: FBT001  # a table
    """By header, the current name before the older one, whether or not its body is seen."""
    rig = Rig("10.0.0.1")
    rig.route(None if follows else b"{}", headers, follows=follows)
    assert [decision.request.flow for decision in rig.recorder.decisions if decision.request] == [flow]


def test_a_decision_names_the_picker_that_made_it() -> None:
    """So that another one, to which the same Envoy logs, leaves its end alone."""
    rig = Rig("10.0.0.1")

    assert rig.pick().startswith("me/")
    assert rig.route(None).decision_id.startswith("me/")


def test_every_candidates_total_is_told_if_asked() -> None:
    """--emit-endpoint-scores: losers included; a GET scores nobody."""
    rig = Rig("10.0.0.64", "10.0.0.128", emit_scores=True)

    assert rig.route().scores == {"10.0.0.64:8000": 0.5, "10.0.0.128:8000": 1.0}
    assert rig.route(subset=["10.0.0.128"]).scores == {"10.0.0.128:8000": 1.0}
    assert rig.route(None).scores is None
    assert Rig("10.0.0.64").route().scores is None


def test_a_rewritten_model_changes_the_body_and_is_turned_back() -> None:
    """The header names the model; the route carries the new body and both names."""
    rig = Rig("10.0.0.1", real_parser=True)

    def route(body: bytes, target: str = "") -> tuple[bytes | None, tuple[str, str] | None]:
        route = rig.route(body, {"x-llm-d-model-name-rewrite": target})
        return route.body, route.model_names

    assert route(b'{"model": "a", "prompt": "p"}', "b") == (b'{"model": "b", "prompt": "p"}', ("b", "a"))
    assert route(b'{"prompt":"p"}', "b") == (b'{"prompt":"p","model":"b"}', None)
    assert route(b'{"model": "a", "prompt": "p"}') == (None, None)


def test_a_route_says_whether_a_stream_was_asked_for() -> None:
    """Where the request was read; a path nobody reads tells nothing."""
    rig = Rig("10.0.0.1", real_parser=True)

    assert rig.route(b'{"model":"a","prompt":"p","stream":true}').stream is True
    assert rig.route(b'{"model":"a","prompt":"p"}').stream is False
    assert rig.route(b"anything", {":path": "/invocations"}).stream is None


def test_a_bug_in_the_decision_is_500_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets a status, not a stream that hangs or ends without a word."""
    rig = Rig("10.0.0.1")
    monkeypatch.setattr(rig.recorder, "tokenized", lambda *_: 1 // 0)

    with pytest.raises(InternalError, match="picking failed"):
        rig.route()

    assert [error.http_status for error in rig.recorder.rejections] == [500]
    assert rig.director.open_decisions == 0


def test_a_request_without_a_body_is_not_counted_as_load() -> None:
    """GET /v1/models costs a model server nothing that a scorer weighs."""
    rig = Rig("10.0.0.1")
    decision = rig.route(None).decision_id

    assert rig.ledger.in_flight == 0
    rig.close(decision, complete=True)
    assert rig.causes == ["finished"]


def test_what_a_prompt_says_is_kept_no_longer_than_it_takes_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers take minutes, and a long prompt's text and tokens are hundreds of KB: only the decision waits for the end."""
    rig, decided, ended = Rig("10.0.0.1", real_parser=True), [], []
    monkeypatch.setattr(rig.recorder, "decided", lambda decision: decided.append(decision.request.body["prompt"]))
    monkeypatch.setattr(rig.recorder, "ended", lambda decision, end: ended.append((decision, end)))

    route = rig.route(b'{"model": "m", "prompt": "long", "stream": true}')
    rig.director.ended(RequestEnd(route.decision_id, EndCause.FINISHED))

    assert (decided, route.stream) == (["long"], True)
    [(decision, _)] = ended
    assert (decision.request.model, decision.request.body, decision.tokens.prompts) == ("m", None, ())
