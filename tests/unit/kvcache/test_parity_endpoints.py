"""What the parity monitor makes of endpoints that differ, and of those that restart or go while it has something against them."""

import random
from collections.abc import Callable

import pytest

from epp.domain import Endpoint, EndpointId
from epp.kvcache.divergence import Cause, Divergence
from epp.kvcache.parity import ParityMonitor
from epp.kvcache.predictions import Settled, Verdict
from tests.unit.kvcache.parity_fleet import PODS, Fleet, Recorder, chat, warm_up

A, B = PODS


# --- engines that differ ----------------------------------------------------------------------------------------------


def test_one_endpoint_with_another_engine_version_is_named() -> None:
    """The others fit, so it is not our template: an alarm for one endpoint of eight, within its 20 requests."""
    endpoints = [Endpoint(EndpointId(f"ns/{i}"), f"10.0.0.{i}", 8000) for i in range(8)]
    fleet, rng = Fleet(endpoints=endpoints), random.Random(1)
    for number in range(8 * 20):
        ours, pod = chat(rng), endpoints[number % 8].id
        fleet.serve(ours, pod, [*ours[:64], 7, *ours[64:]] if number % 8 == 3 else ours)
    (loss,) = fleet.told.lost
    assert (loss.cause, loss.endpoints) == ("version", ("ns/3",))
    assert "differ from those of the other endpoints: chat template or tokenizer: prompts differ from token 64 on" in loss.detail


def test_an_engine_that_came_back_as_another_version_is_named() -> None:
    """It fitted before it restarted."""
    fleet, rng = Fleet(), random.Random(1)
    for _ in range(10):
        fleet.serve(chat(rng), A)
    fleet.engines[A].restart()
    fleet.index.clear(A)
    for _ in range(20):
        ours = chat(rng)
        fleet.serve(ours, A, [1, *ours])
    (loss,) = fleet.told.lost
    assert loss.cause == "version"
    assert "which changed with a restart there: beginning-of-sequence token" in loss.detail


def test_the_same_difference_everywhere_is_no_matter_of_versions() -> None:
    """It is ours to mend."""
    fleet, rng = Fleet(), random.Random(1)
    for number in range(20):
        ours = chat(rng)
        fleet.serve(ours, PODS[number % 2], [1, *ours])
    assert [loss.cause for loss in fleet.told.lost] == ["bos"]


# --- engines that are not there any more ------------------------------------------------------------------------------

LEAVES = pytest.mark.parametrize(
    "leave",
    [lambda fleet: fleet.index.clear(A), lambda fleet: (fleet.index.remove(A), fleet.monitor.removed(A))],
    ids=["restarted", "gone"],
)


@LEAVES
def test_an_alarm_ends_with_the_engine_it_was_about(leave: Callable[[Fleet], object]) -> None:
    """Nobody may see it fit again: its pod is gone, or a new process that is looked at anew."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng, 80)
    for _ in range(20):
        ours = chat(rng)
        fleet.serve(ours, B)
        fleet.serve(ours, A, [1, *ours])
    assert [loss.endpoints for loss in fleet.told.lost] == [(A,)]
    leave(fleet)
    assert (fleet.told.over, fleet.told.restored) == (["m"], [])


@LEAVES
def test_an_alarm_ends_with_the_only_engine(leave: Callable[[Fleet], object]) -> None:
    """What all endpoints together showed was shown by this one."""
    fleet, rng = Fleet(), random.Random(1)
    for _ in range(20):
        ours = chat(rng)
        fleet.serve(ours, A, [1, *ours])
    leave(fleet)
    assert (fleet.told.over, fleet.told.restored) == (["m"], [])


def test_an_engine_that_is_as_wrong_as_before_its_restart_raises_the_alarm_again() -> None:
    """Within the same eight requests."""
    fleet, rng = Fleet(), random.Random(1)
    for requests in (20, 8):
        for _ in range(requests):
            ours = chat(rng)
            fleet.serve(ours, A, [1, *ours])
        fleet.engines[A].restart()
        fleet.index.clear(A)
    assert [loss.cause for loss in fleet.told.lost] == ["bos", "bos"]
    assert fleet.told.over == ["m", "m"]


def test_an_alarm_stays_while_other_engines_are_as_wrong() -> None:
    """One restart of two mends nothing, and is no second line."""
    fleet, rng = Fleet(), random.Random(1)
    for number in range(40):
        ours = chat(rng)
        fleet.serve(ours, PODS[number % 2], [1, *ours])
    fleet.index.clear(A)
    assert (len(fleet.told.lost), fleet.told.over, fleet.told.restored) == (1, [], [])


def test_an_alarm_whose_engine_is_gone_names_what_is_left() -> None:
    """Two engines went wrong in two ways; the first is gone, and the second is not what the alarm said."""
    fleet, rng = Fleet(), random.Random(1)
    warm_up(fleet, rng, 80)
    for _ in range(20):
        ours = chat(rng)
        fleet.serve(ours, A, [1, *ours])
    fleet.engines[B].publish = lambda _: None
    for _ in range(20):
        fleet.serve(chat(rng), B)
    assert [(loss.cause, loss.endpoints) for loss in fleet.told.lost] == [("version", (A,))]
    fleet.monitor.removed(A)
    assert [(loss.cause, loss.endpoints) for loss in fleet.told.lost[1:]] == [("silent", (B,))]
    assert not fleet.told.over


def test_learning_an_engine_anew_mends_nothing_by_itself() -> None:
    """A stale index makes epp forget what it believed of an engine: the alarm stays until its hits are found, or a restart after that."""
    fleet, rng = Fleet(), random.Random(1)
    conversations = [chat(rng) for _ in range(20)]

    def lose() -> None:
        """The engine's cache is emptied, and nobody hears of what it stores again."""
        fleet.engines[A].lose()
        publish, fleet.engines[A].publish = fleet.engines[A].publish, lambda _: None
        for ours in conversations:
            fleet.serve(ours, A, tells=True)
        fleet.engines[A].publish = publish

    for ours in conversations:
        fleet.serve(ours, A, tells=True)
    lose()
    assert (fleet.stale, [loss.cause for loss in fleet.told.lost]) == ([A], ["index"])
    for _rank in range(2):
        fleet.index.clear(A)
    assert (fleet.told.over, fleet.told.restored) == ([], [])
    for ours in conversations:  # they are cached there, so their counts are all that is seen of them
        fleet.serve(ours, A, tells=True)
    fleet.index.clear(A)
    assert fleet.told.over == ["m"]


def test_what_is_forgotten_because_of_what_was_forgotten_disturbs_nothing() -> None:
    """One engine goes, the alarm then names another's stale index, and that is forgotten in the same moment, with a model nobody had heard of."""
    told = Recorder()

    def forget(endpoint: EndpointId) -> None:
        monitor.settled(Settled(endpoint, "new", Verdict.CONFIRMED))
        monitor.forgotten(endpoint)

    monitor = ParityMonitor(told, stale=forget)
    for endpoint, cause in ((A, Cause.BOS), (B, Cause.INDEX)):
        for _ in range(20):
            monitor.settled(Settled(endpoint, "m", Verdict.CONTRADICTED, Divergence(cause, 0)))
    monitor.removed(A)
    assert [(loss.cause, loss.endpoints) for loss in told.lost] == [("bos", (A,)), ("index", (B,))]
    assert (told.over, told.restored) == ([], [])
