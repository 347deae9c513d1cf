"""A soak fails where something is lost, duplicated, cut or left behind: each way of being wrong has its row."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.soak.exchange import Exchange
from tests.soak.plan import LEAVES, Kind, Plan, Plans, json_answer, streamed_answer
from tests.soak.verdict import Books, Footprint, Report, checks, problem, render

MIB = 1 << 20
PLANS = {plan.kind: plan for plan in Plans(1)(0, 5_000)}


class Seen(Exchange):
    """An exchange that is over; made on a loop, as all of them are."""

    def __init__(self, status: int = 200, body: bytes = b"", *, complete: bool = True, left: bool = False, hung: bool = False) -> None:
        super().__init__()
        self.status, self.body, self.complete, self.left, self.hung = status, bytearray(body), complete, left, hung

    def send(self, data: bytes | memoryview, *, end: bool) -> None:
        raise AssertionError

    def leave(self, *, reset: bool) -> None:
        raise AssertionError


def right_answer(plan: Plan) -> bytes:
    if plan.kind in (Kind.STREAM, Kind.IN_ANSWER):
        return streamed_answer(plan.number, plan.body.crc, plan.events)
    return json_answer(plan.number, plan.body.crc, plan.text)


ANSWERED = (Kind.JSON, Kind.STREAM, Kind.AFTER_BODY, Kind.IN_ANSWER)


@pytest.mark.parametrize("kind", ANSWERED)
async def test_a_whole_answer_is_right(kind: Kind) -> None:
    """Also that of a client that was about to leave."""
    assert problem(PLANS[kind], Seen(body=right_answer(PLANS[kind])), 1) is None


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind in LEAVES])
async def test_who_left_needs_no_answer(kind: Kind) -> None:
    """Whatever it had seen."""
    assert problem(PLANS[kind], Seen(0, complete=False, left=True), 0) is None


@pytest.mark.parametrize(
    ("kind", "status", "arrivals", "complete"),
    [
        (Kind.REFUSED, 503, 1, True),
        (Kind.NOT_JSON, 400, 0, True),
        (Kind.TOO_LARGE, 413, 0, True),
        (Kind.CUT, 200, 1, False),
    ],
)
async def test_failures_that_are_planned_are_right(kind: Kind, status: int, arrivals: int, *, complete: bool) -> None:
    """They are part of a fleet's life."""
    assert problem(PLANS[kind], Seen(status, complete=complete), arrivals) is None


async def test_a_dead_model_server_is_a_502_only_where_headers_wait() -> None:
    """In our default mode the client has them at once."""
    assert problem(PLANS[Kind.CUT], Seen(502), 1, headers_wait=True) is None
    assert problem(PLANS[Kind.CUT], Seen(502), 1) is not None


@pytest.mark.parametrize(
    ("kind", "seen", "arrivals", "message"),
    [
        (Kind.JSON, {"hung": True}, 1, "hung"),
        (Kind.JSON, {"status": 0, "complete": False}, 0, "never reached"),
        (Kind.JSON, {}, 2, "reached model servers 2 times"),
        (Kind.AFTER_BODY, {"left": True}, 2, "reached model servers 2 times"),
        (Kind.JSON, {"status": 500}, 1, "status 500 and not 200"),
        (Kind.JSON, {"complete": False}, 1, "cut off"),
        (Kind.JSON, {"body": b"{}"}, 1, "another answer"),
        (Kind.STREAM, {"body": b"data: {}\n\n"}, 1, "another answer"),
        (Kind.ERROR, {"status": 200}, 1, "status 200 and not 500"),
        (Kind.CUT, {}, 1, "came to its end"),
        (Kind.NOT_JSON, {"status": 400}, 1, "reached a model server"),
        (Kind.IN_BODY, {"left": True}, 1, "reached a model server"),
        (Kind.TOO_LARGE, {"status": 0, "complete": False}, 0, "status 0 and not 413"),
    ],
)
async def test_what_went_wrong_is_said(kind: Kind, seen: dict[str, object], arrivals: int, message: str) -> None:
    """Nothing that a client or a model server could notice passes."""
    assert message in (problem(PLANS[kind], Seen(**seen), arrivals) or "nothing")  # type: ignore[arg-type]  # rows are checked by running


BOOKS = Books(
    decided=90, ended={"finished": 80, "client_gone": 10}, running=0, streams=100, streams_open=0, calls_open=1,
    unknown_entries=0, entries_dropped=0, envoy_active=0,
)  # fmt: skip


def report() -> Report:
    """One in which everything holds."""
    return Report(
        "fast", len(Kind), 1.0, Counter(Kind), settled_s=[0.1, 0.2], books=BOOKS,
        picker=[Footprint(200 * MIB, 20), Footprint(201 * MIB, 20)], envoy=[Footprint(70 * MIB, 50)] * 2,
    )  # fmt: skip


def test_all_is_well() -> None:
    """Every check passes and is shown."""
    assert all(check.passed for check in checks(report()))
    assert render([report()]).count("ok: ") == len(checks(report()))


def test_a_heap_that_goes_up_and_down_is_flat() -> None:
    """Whatever it is at the moment of the last look."""
    found = replace(report(), resident=[200 * MIB, 212 * MIB] * 20, picker=[Footprint(200 * MIB, 20), Footprint(212 * MIB, 20)])
    assert all(check.passed for check in checks(found))


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ({"requests": 13}, "every request was played"),
        ({"problems": ["request 1 hung"]}, "none lost"),
        ({"kinds": Counter({Kind.JSON: len(Kind)})}, "of every kind"),
        ({"settled_s": [0.1, 11.0]}, "in-flight is zero"),
        ({"books": None}, "nothing is under way"),
        ({"books": replace(BOOKS, running=1)}, "in-flight is zero"),
        ({"books": replace(BOOKS, decided=91)}, "each decision ended once"),
        ({"books": replace(BOOKS, ended={"finished": 89, "aged_out": 1})}, "none by its age"),
        ({"books": replace(BOOKS, streams_open=1)}, "no stream is left"),
        ({"books": replace(BOOKS, calls_open=2)}, "no stream is left"),
        ({"books": replace(BOOKS, unknown_entries=1)}, "no log entry of a closed decision"),
        ({"books": replace(BOOKS, entries_dropped=1)}, "Envoy dropped no log entry"),
        ({"books": replace(BOOKS, envoy_active=1)}, "Envoy has nothing under way"),
        ({"picker": [Footprint(200 * MIB, 20), Footprint(209 * MIB, 20)]}, "memory is flat"),
        ({"resident": [200 * MIB] * 20 + [209 * MIB] * 20}, "memory is flat"),
        ({"picker": [Footprint(200 * MIB, 20), Footprint(200 * MIB, 30)]}, "no file is left open"),
    ],
)
def test_each_leak_fails_its_check(wrong: dict[str, object], check: str) -> None:
    """And no other."""
    failed = [found.name for found in checks(replace(report(), **wrong)) if not found.passed]  # type: ignore[arg-type]  # rows are checked by running

    assert len(failed) == 1
    assert failed[0].startswith(check)
