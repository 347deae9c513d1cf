"""Each difference between prediction and truth is blamed on the request or eviction that caused it, and on nothing else."""

from dataclasses import replace

from epp.demo.explain import Explainer, Request
from epp.demo.records import Announcement, Cause

BLOCK = 16
# A prompt of four blocks, decided at second 10 and prefilled by second 10.2.
ASKED = Request(
    id="asked",
    chosen="pod-0",
    pod="pod-0",
    decided=10.0,
    first_token=10.2,
    ended=11.0,
    blocks=(1, 2, 3, 4),
    predicted_tokens=0,
    actual_tokens=0,
)
OTHER = replace(ASKED, id="other", decided=9.9, first_token=10.1, ended=10.9)


def cause(request: Request, others: list[Request], history: list[Announcement]) -> tuple[Cause, tuple[str, ...]]:
    """Who is blamed."""
    explanation = Explainer([request, *others], history, BLOCK).explain(request)
    assert explanation is not None
    return explanation.cause, explanation.by


def stored(time: float, *blocks: int) -> Announcement:
    """pod-0 stores blocks."""
    return Announcement("pod-0", time, stored=blocks)


def evicted(time: float, *blocks: int, stored: tuple[int, ...] = ()) -> Announcement:
    """pod-0 gives blocks up for others."""
    return Announcement("pod-0", time, removed=blocks, stored=stored)


def test_a_prediction_that_came_true_needs_no_explanation() -> None:
    """Only differences are explained."""
    request = replace(ASKED, predicted_tokens=32, actual_tokens=32)
    assert Explainer([request], [], BLOCK).explain(request) is None


def test_an_eviction_between_decision_and_prefill_is_blamed_on_who_took_the_room() -> None:
    """The engine step that removed the block stored blocks of another request: that one."""
    request = replace(ASKED, predicted_tokens=64, actual_tokens=32)
    taker = replace(OTHER, id="taker", blocks=(7, 8))
    bystander = replace(OTHER, id="bystander", blocks=(9,))
    history = [stored(5.0, 1, 2, 3, 4), evicted(10.1, 4, 3, stored=(7, 8))]
    assert cause(request, [taker, bystander], history) == (Cause.EVICTED, ("taker",))


def test_an_eviction_for_an_answer_names_all_that_ran() -> None:
    """A growing answer takes room without storing anything in the same step, so each running request is a suspect."""
    request = replace(ASKED, predicted_tokens=64, actual_tokens=48)
    suspects = [replace(OTHER, id=name, blocks=(20 + i,)) for i, name in enumerate(("a", "b"))]
    gone = replace(OTHER, id="gone", decided=1.0, first_token=2.0, ended=3.0, blocks=(30,))
    assert cause(request, [*suspects, gone], [stored(5.0, 1, 2, 3, 4), evicted(10.1, 4)]) == (Cause.EVICTED, ("a", "b"))


def test_a_copy_that_remains_is_no_eviction() -> None:
    """Two requests computed the same block; one copy of two is removed and the block can still be hit."""
    request = replace(ASKED, predicted_tokens=64, actual_tokens=48)
    history = [stored(5.0, 1, 2, 3, 4), stored(5.1, 4), evicted(10.1, 4)]
    assert cause(request, [replace(OTHER, blocks=(9,))], history) == (Cause.UNEXPLAINED, ())


def test_an_old_eviction_excuses_nothing() -> None:
    """The news had a whole second to arrive: the picker should have known."""
    request = replace(ASKED, predicted_tokens=64, actual_tokens=48)
    assert cause(request, [replace(OTHER, blocks=(9,))], [stored(5.0, 1, 2, 3, 4), evicted(9.0, 4)]) == (Cause.UNEXPLAINED, ())


def test_a_block_that_was_about_to_be_computed() -> None:
    """It was counted for a request in flight with the same prefix, which came too late."""
    request = replace(ASKED, predicted_tokens=64, actual_tokens=0)
    assert cause(request, [OTHER], []) == (Cause.STILL_COMPUTING, ("other",))


def test_a_block_computed_after_the_decision() -> None:
    """A hit beyond the prediction is owed to the request that stored the block in between."""
    request = replace(ASKED, predicted_tokens=32, actual_tokens=64)
    assert cause(request, [OTHER], [stored(5.0, 1, 2), stored(10.1, 3, 4)]) == (Cause.COMPUTED_MEANWHILE, ("other",))


def test_a_block_the_picker_should_have_known() -> None:
    """Stored long before the decision: nothing came between."""
    request = replace(ASKED, predicted_tokens=32, actual_tokens=64)
    assert cause(request, [OTHER], [stored(5.0, 1, 2, 3, 4)]) == (Cause.UNEXPLAINED, ())


def test_another_pod_answered() -> None:
    """Where Envoy went elsewhere, the prediction was about another cache."""
    request = replace(ASKED, pod="pod-1", predicted_tokens=32, actual_tokens=0)
    assert cause(request, [], []) == (Cause.SERVED_ELSEWHERE, ())


def test_events_of_another_pod_prove_nothing() -> None:
    """An eviction elsewhere is no excuse here."""
    request = replace(ASKED, predicted_tokens=64, actual_tokens=48)
    history = [Announcement("pod-1", 5.0, stored=(4,)), Announcement("pod-1", 10.1, removed=(4,))]
    assert cause(request, [replace(OTHER, blocks=(9,))], history) == (Cause.UNEXPLAINED, ())
