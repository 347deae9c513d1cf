"""epp's predictions are held against the engines' own counters, and what does not fit is said."""

import pytest

from epp.demo.records import Mode, ModeRun
from epp.demo.vllm.counters import Counters
from epp.demo.vllm.verdict import complaints, judge
from tests.unit.demo.builders import choice, mode_run, played

BLOCK = 16  # of the builders' run


def run() -> ModeRun:
    """Two requests on pod-0 with 9 and 5 blocks foreseen, one on pod-1 with 2."""
    return mode_run(
        [played("a"), played("b"), played("c", pod="pod-1")],
        bounds=[0, 0, 0],
        choices=[choice("a", "pod-0", [9, 0]), choice("b", "pod-0", [5, 0]), choice("c", "pod-1", [0, 2])],
    )


def growths(hits_0: int, hits_1: int = 2 * BLOCK, requests_0: int = 2) -> dict[str, Counters]:
    """What the engines counted."""
    return {"pod-0": Counters(requests_0, 400, hits_0), "pod-1": Counters(1, 200, hits_1)}


def test_equal_sums_leave_nothing_to_say() -> None:
    """Each engine counted to the token what epp had foreseen for it."""
    verdicts = judge(run(), growths(14 * BLOCK))
    assert [(one.engine, one.requests, one.predicted_tokens, one.apart_tokens) for one in verdicts] == [
        ("pod-0", 2, 14 * BLOCK, 0),
        ("pod-1", 1, 2 * BLOCK, 0),
    ]
    assert complaints(run(), verdicts) == []


@pytest.mark.parametrize("off", [-2 * BLOCK, -1, 1, 2 * BLOCK])
def test_one_block_a_request_may_lie_between_them(off: int) -> None:
    """In either direction."""
    ours = run()
    assert complaints(ours, judge(ours, growths(14 * BLOCK + off))) == []


@pytest.mark.parametrize("off", [-2 * BLOCK - 1, 2 * BLOCK + 1])
def test_a_token_more_is_too_much(off: int) -> None:
    """For each engine by itself, whatever the others have to spare."""
    ours = run()
    verdicts = judge(ours, growths(14 * BLOCK + off))
    assert [one.agrees for one in verdicts] == [False, True]
    (sentence,) = complaints(ours, verdicts)
    assert sentence.startswith(
        f"pod-0: vLLM counted {14 * BLOCK + off} hit tokens, epp foresaw {14 * BLOCK}; {2 * BLOCK + 1} lie between them"
    )


def test_the_prediction_counts_for_the_engine_that_served() -> None:
    """Where Envoy went elsewhere, what epp saw there counts."""
    ours = mode_run([played("a", pod="pod-1")], bounds=[0], choices=[choice("a", "pod-0", [9, 3])])
    verdicts = judge(ours, {"pod-0": Counters(0, 0, 0), "pod-1": Counters(1, 200, 3 * BLOCK)})
    assert [one.predicted_tokens for one in verdicts] == [0, 3 * BLOCK]
    assert all(one.agrees for one in verdicts)


def test_requests_from_elsewhere_spoil_the_comparison() -> None:
    """An engine that counted other requests than the client had answers is no witness."""
    ours = run()
    assert complaints(ours, judge(ours, growths(14 * BLOCK, requests_0=3))) == [
        "pod-0 counted 3 requests, the client had 2 answers from it"
    ]


def test_sums_of_nothing_do_not_pass() -> None:
    """epp that sees no tokens foresees no hits, and engines that share nothing have none: equal, and worthless."""
    ours = mode_run([played("a"), played("b", pod="pod-1")], bounds=[0, 0], choices=[choice("a", "pod-0", [0, 0])])
    verdicts = judge(ours, {"pod-0": Counters(1, 200, 0), "pod-1": Counters(1, 200, 0)})
    assert complaints(ours, verdicts) == [
        "epp foresaw nothing for 1 requests, such as b: it had no tokens",
        "pod-0 had no hit at all, so nothing was compared there",
        "pod-1 had no hit at all, so nothing was compared there",
    ]


def test_a_failed_request_is_a_complaint_of_its_own() -> None:
    """It is left out of the sums; that the engine counted it, or not, is no second fault."""
    ours = run()
    ours.requests[1].error = "status 503: upstream connect error"
    found = complaints(ours, judge(ours, growths(9 * BLOCK)))
    assert found == ["1 requests had no whole answer; the first, b: status 503: upstream connect error"]


def test_without_a_picker_nothing_is_foreseen() -> None:
    """Round robin has counters to show, and nothing to compare."""
    ours = mode_run([played("a"), played("b", pod="pod-1")], bounds=[0, 0], mode=Mode.ROUND_ROBIN)
    verdicts = judge(ours, {"pod-0": Counters(1, 200, 64), "pod-1": Counters(1, 200, 0)})
    assert [one.predicted_tokens for one in verdicts] == [None, None]
    assert complaints(ours, verdicts) == []
