"""The books: a decision is closed exactly once, whatever way its request ends, and load never outlives its grace."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import DecisionId, EndCause, RequestEnd
from epp.picking.open_decisions import ENDED_GRACE_S, MAX_AGE_S, SILENT_GRACE_S
from tests.unit.picking.rig import Rig

UNKNOWN: Final = DecisionId("")


def told(decision: DecisionId, cause: EndCause = EndCause.FINISHED, origin: str | None = None) -> RequestEnd:
    """What the access log tells."""
    return RequestEnd(decision, cause, status=200, served="10.0.0.1:8000", duration_s=1.5, origin=origin)


# --- the log tells -------------------------------------------------------------------------------------------------


def test_the_access_log_closes_a_decision_once() -> None:
    """A second entry, one of an earlier life of this picker, and those of other requests are counted and change nothing."""
    rig = Rig("10.0.0.1")
    decision = rig.pick()
    rig.close(decision, logged=True)
    assert rig.ledger.in_flight == 1

    rig.director.ended(told(decision))
    rig.director.ended(told(decision))
    rig.director.ended(told(UNKNOWN))
    rig.director.ended(told(UNKNOWN, origin="1000|10.9.9.9:5"))
    rig.director.unmatched("other_instance")

    assert rig.ledger.in_flight == 0
    assert rig.causes == ["finished"]
    assert rig.recorder.unmatched == ["unknown_decision", "no_decision", "no_decision", "other_instance"]
    assert rig.expire_after(MAX_AGE_S + 1) == 0


@pytest.mark.parametrize(
    ("flags", "served", "told"),
    [
        (("UF",), "10.0.0.1:8000", ["10.0.0.1:8000"]),
        (("UF", "URX"), "10.0.0.2:8000", ["10.0.0.2:8000"]),
        (("UF", "DC"), "10.0.0.1:8000", ["10.0.0.1:8000"]),
        (("UF",), None, []),
        (("UO",), "10.0.0.1:8000", []),
        (("UC",), "10.0.0.1:8000", []),
        (("UR",), "10.0.0.1:8000", []),
        (("UT",), "10.0.0.1:8000", []),
        ((), "10.0.0.1:8000", []),
    ],
)
def test_a_connection_that_did_not_come_about_is_told(flags: tuple[str, ...], served: str | None, told: list[str]) -> None:
    """Of the endpoint the data plane went to, for a request of ours, once; what else goes wrong says nothing of who listens."""
    rig = Rig("10.0.0.1", "10.0.0.2")
    end = RequestEnd(rig.pick(), EndCause.UPSTREAM_FAILED, status=503, served=served, response_flags=flags)
    rig.director.ended(end)
    rig.director.ended(end)
    rig.director.ended(RequestEnd(UNKNOWN, EndCause.UPSTREAM_FAILED, status=503, served=served, response_flags=flags))
    assert rig.not_connected == told


@pytest.mark.parametrize("complete", [True, False])
def test_an_entry_may_come_before_the_streams_end(complete: bool) -> None:  # noqa: FBT001  # a table
    """Log and stream are two connections; whoever is second finds nothing to do."""
    rig = Rig("10.0.0.1")
    decision = rig.pick()

    rig.director.ended(told(decision))
    rig.close(decision, seen=True, complete=complete, logged=True)

    assert rig.causes == ["finished"]
    assert rig.expire_after(MAX_AGE_S + 1) == 0


def test_a_lost_entry_is_bounded_in_age() -> None:
    """An Envoy that died does not count against an endpoint for ever; what is younger stays."""
    rig = Rig("10.0.0.1")
    rig.close(rig.pick(), logged=True)
    rig.time += MAX_AGE_S / 2
    rig.close(rig.pick(), logged=True)

    assert rig.expire_after(MAX_AGE_S / 2 + 1) == 1
    assert rig.causes == ["aged_out"]
    assert rig.ledger.in_flight == 1


def test_a_stream_that_is_open_never_ages() -> None:
    """Its transport promises its end, however long the answer takes."""
    rig = Rig("10.0.0.1")
    decision = rig.pick()

    assert rig.expire_after(10 * MAX_AGE_S) == 0
    rig.close(decision, complete=True)
    assert rig.causes == ["finished"]


def test_where_the_end_is_known_a_lost_entry_costs_a_moment() -> None:
    """The log only adds the endpoint that served to an answer that came by to its end."""
    rig = Rig("10.0.0.1")
    rig.time += 3.0
    decision = rig.pick()
    rig.time += 7.0
    rig.close(decision, complete=True, logged=True)
    assert rig.causes == []

    assert rig.expire_after(ENDED_GRACE_S + 0.1) == 1

    assert rig.causes == ["finished"]
    assert rig.recorder.ends[0].duration_s == 7.0


def test_a_cut_stream_of_a_data_plane_that_logs_waits_for_its_word() -> None:
    """A stream ended for draining leaves its answer running; only the log knows until when."""
    rig = Rig("10.0.0.1")
    decision = rig.pick()
    rig.close(decision, seen=True, bodies=True, logged=True)

    assert rig.expire_after(SILENT_GRACE_S + 1) == 0
    rig.director.ended(told(decision))
    assert rig.causes == ["finished"]


# --- the stream tells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ({"complete": True}, "finished"),
        ({"complete": True, "bodies": True}, "finished"),
        ({"seen": True, "bodies": True}, "client_gone"),
        ({"bodies": True}, "client_gone"),
        ({"seen": True}, "finished"),
    ],
    ids=["whole", "whole with its body", "cut", "never begun", "headers only come by"],
)
def test_without_an_access_log_the_stream_tells(how: dict[str, bool], cause: str) -> None:
    """Gateways that send answers through ext_proc need no log."""
    rig = Rig("10.0.0.1")
    decision = rig.pick()

    rig.close(decision, **how)

    assert rig.ledger.in_flight == 0
    assert rig.causes == [cause]


def test_a_chunk_that_came_by_tells_that_bodies_are_sent() -> None:
    """A data plane that does not tell its modes is understood from what it does."""
    rig = Rig("10.0.0.1")
    route = rig.route()
    assert route.listener is not None
    route.listener.began(200, event_stream=True)
    route.listener.body(b"data: ")

    rig.close(route.decision_id, seen=True)

    assert rig.causes == ["client_gone"]


def test_where_headers_of_answers_come_by_their_lack_tells_too() -> None:
    """Body modes say nothing of headers: the first that come by tell that those of the others would have, were the clients there."""
    rig = Rig("10.0.0.1")
    early, answered, late = rig.pick(), rig.pick(), rig.pick()
    rig.close(early)
    assert rig.causes == []

    rig.close(answered, seen=True)
    assert rig.causes == ["finished", "client_gone"]
    rig.close(late)
    assert rig.causes == ["finished", "client_gone", "client_gone"]
    assert rig.expire_after(MAX_AGE_S + 1) == 0


def test_whole_answers_of_one_data_plane_tell_nothing_of_another() -> None:
    """One that sends whole answers says so; one that is silent may have a log that connects."""
    rig = Rig("10.0.0.1")
    duplex, silent = rig.pick(), rig.pick()
    rig.close(duplex, complete=True, bodies=True)
    rig.close(silent)

    assert rig.causes == ["finished"]
    rig.director.ended(told(silent))
    assert rig.causes == ["finished", "finished"]


# --- nobody tells --------------------------------------------------------------------------------------------------


def test_a_silent_stream_waits_for_the_log_and_is_given_up_without_one() -> None:
    """Where answers stay away and no log comes, load must not pile up."""
    rig = Rig("10.0.0.1")
    rig.close(rig.pick())

    assert rig.expire_after(SILENT_GRACE_S - 1) == 0
    assert rig.expire_after(2) == 1
    assert rig.causes == ["aged_out"]
    assert rig.ledger.in_flight == 0


def test_a_log_that_connects_late_is_waited_for() -> None:
    """Envoy's log connects with its first entry: the other answers that began before are not given up, and age from then on."""
    rig = Rig("10.0.0.1")
    first, second, lost = rig.pick(), rig.pick(), rig.pick()
    for decision in (first, second, lost):
        rig.close(decision)
    rig.time += SILENT_GRACE_S - 1
    rig.director.ended(told(first))

    assert rig.expire_after(MAX_AGE_S - 1) == 0
    rig.director.ended(told(second))
    assert rig.expire_after(2) == 1
    assert rig.causes == ["finished", "finished", "aged_out"]


def test_data_planes_with_and_without_a_log_do_not_mix() -> None:
    """That one data plane logs does not make another one's answers wait for it."""
    rig = Rig("10.0.0.1")
    with_log, without = rig.pick(), rig.pick()
    rig.close(with_log, logged=True)
    rig.close(without)
    rig.director.ended(told(with_log))

    assert rig.expire_after(SILENT_GRACE_S + 1) == 1
    assert rig.causes == ["finished", "aged_out"]


# --- the client leaves before our answer is out --------------------------------------------------------------------


def test_a_request_that_never_went_on_is_given_back_soon() -> None:
    """Envoy may log it with its decision, or without; it may have answered itself. None of it holds the load for long."""
    rig = Rig("10.0.0.1")
    told_of, untold = rig.pick(), rig.pick()
    rig.close(told_of, routed=False, logged=True)
    rig.close(untold, routed=False, seen=True)

    rig.director.ended(told(told_of, EndCause.CLIENT_GONE))
    assert rig.expire_after(0) == 0
    assert rig.expire_after(ENDED_GRACE_S + 0.1) == 1

    assert rig.causes == ["client_gone", "client_gone"]
    assert rig.ledger.in_flight == 0


@pytest.mark.parametrize("logged", [True, False])
def test_a_client_that_leaves_while_our_answer_is_on_its_way(logged: bool) -> None:  # noqa: FBT001  # a table
    """Envoy then never takes our metadata over: the entry names no decision, but when and whence the request came."""
    rig = Rig("10.0.0.1")
    left, stays = rig.pick(origin="1000|10.9.9.9:5"), rig.pick(origin="2000|10.9.9.9:5")
    rig.close(left, logged=logged)

    rig.director.ended(told(UNKNOWN, EndCause.CLIENT_GONE, origin="1000|10.9.9.9:5"))

    assert rig.causes == ["client_gone"]
    assert rig.recorder.ends[0].decision_id == left
    assert rig.recorder.unmatched == []
    assert rig.ledger.in_flight == 1
    rig.director.ended(told(stays))
    assert rig.ledger.in_flight == 0


def test_a_client_that_left_before_we_decided() -> None:
    """A busy picker may read the entry before it makes the decision: that one is not in flight for ten minutes."""
    rig = Rig("10.0.0.1")
    rig.director.ended(told(UNKNOWN, EndCause.CLIENT_GONE, origin="1000|10.9.9.9:5"))
    rig.close(rig.pick(origin="1000|10.9.9.9:5"), logged=True)

    assert rig.expire_after(ENDED_GRACE_S + 0.1) == 1
    assert rig.causes == ["client_gone"]
    assert rig.recorder.unmatched == ["no_decision"]
    rig.close(rig.pick(origin="1000|10.9.9.9:5"), logged=True)
    assert rig.expire_after(ENDED_GRACE_S + 0.1) == 0


# --- any of it, in any order ---------------------------------------------------------------------------------------

Step = Callable[[Rig, list[DecisionId]], object]
FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("routed", "seen", "complete", "logged", "bodies")})


def pick_one(origin: str | None) -> Step:
    return lambda rig, made: made.append(rig.pick(origin))


def close_one(number: int, flags: dict[str, bool]) -> Step:
    return lambda rig, made: rig.close(made[number % len(made)], **flags) if made else None


def log_one(number: int) -> Step:
    return lambda rig, made: rig.director.ended(told(made[number % len(made)] if made else DecisionId("d")))


def log_origin(origin: str) -> Step:
    return lambda rig, _: rig.director.ended(told(UNKNOWN, origin=origin))


def wait(seconds: float) -> Step:
    return lambda rig, _: rig.expire_after(seconds)


ORIGINS = st.sampled_from(["1000|a:1", "2000|a:1"])
STEPS = st.one_of(
    st.builds(pick_one, st.none() | ORIGINS),
    st.builds(close_one, st.integers(0, 9), FLAGS),
    st.builds(log_one, st.integers(0, 9)),
    st.builds(log_origin, ORIGINS),
    st.builds(wait, st.sampled_from([0.0, 1.0, 3.0, 31.0, 601.0])),
)


@given(st.lists(STEPS, max_size=30))
def test_every_decision_is_closed_exactly_once(steps: list[Step]) -> None:
    """Whatever stream and log tell in whatever order: one end a decision, load is what is open, and both come to nothing."""
    rig = Rig("10.0.0.1")
    made: list[DecisionId] = []

    for step in steps:
        step(rig, made)
        assert rig.ledger.in_flight == rig.director.open_decisions == len(made) - len(rig.recorder.ends)
    for decision in made:
        rig.close(decision)
    rig.expire_after(MAX_AGE_S + 1)

    assert sorted(end.decision_id for end in rig.recorder.ends) == sorted(made)
    assert rig.director.open_decisions == rig.ledger.in_flight == 0
