"""What goes wrong on purpose: which batches a wish meets, and wishes that mean nothing."""

import json
from itertools import compress

import pytest

from epp.simulator import faults
from epp.simulator.errors import ApiError
from epp.simulator.faults import FaultInjector, Treatment


def injector(seed: str = "seed", **wish: object) -> FaultInjector:
    return FaultInjector(faults.decode(json.dumps(wish)), seed)


def dropped(injector: FaultInjector, batches: int = 12) -> list[int]:
    """The numbers, from 1 on, of those that nobody gets."""
    return list(compress(range(1, batches + 1), [injector.treat().sent == 0 for _ in range(batches)]))


@pytest.mark.parametrize(
    ("selection", "met"),
    [
        ({"next": 3}, [1, 2, 3]),
        ({"every": 4}, [4, 8, 12]),
        ({"next": 2, "every": 5}, [1, 2, 5, 10]),
        ({"share": 1.0}, list(range(1, 13))),
    ],
)
def test_which_batches_are_met(selection: dict[str, object], met: list[int]) -> None:
    """Counted from the wish on; and how many they were is told."""
    one = injector(drop=selection)
    assert dropped(one) == met
    assert one.met == {"drop": len(met), "delay": 0, "duplicate": 0}


def test_chance_is_seeded() -> None:
    """The same seed meets the same batches, another one others; about as many as wished."""
    runs = [dropped(injector(seed, drop={"share": 0.3}), 1000) for seed in ("a", "a", "b")]
    assert runs[0] == runs[1] != runs[2]
    assert 250 < len(runs[0]) < 350


def test_another_fault_does_not_change_whom_this_one_meets() -> None:
    """So that a run can be understood fault by fault."""
    alone, beside = injector(duplicate={"every": 2}), injector(duplicate={"every": 2}, drop={"every": 3})
    assert [alone.treat().sent for _ in range(6)] == [1, 2, 1, 2, 1, 2]
    assert [beside.treat().sent for _ in range(6)] == [1, 2, 0, 2, 1, 0]


def test_what_happens_to_a_batch() -> None:
    """Late and twice together; and what a replay tells of a lost one."""
    one = injector(delay={"next": 1, "seconds": 2, "in_order": False}, duplicate={"next": 1, "extra": 2})
    assert one.treat() == Treatment(sent=3, delay_s=2.0, in_order=False)
    assert one.treat() == Treatment()
    assert injector(drop={"next": 1, "ring": "skips"}).treat() == Treatment(sent=0, ring="skips")


def test_a_dead_publisher_sends_and_keeps_nothing() -> None:
    """Until it is another process, which is heard again."""
    one = injector(silence="publisher")
    assert one.treat() == Treatment(sent=0, ring="skips")
    one.set(one.faults.awake())
    assert one.treat() == Treatment()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"dorp": {"next": 1}}', "dorp"),
        ('{"drop": {}}', "next, every or share"),
        ('{"drop": {"next": -1}}', "drop.next"),
        ('{"drop": {"share": 1.5}}', "drop.share"),
        ('{"drop": {"next": 1, "ring": "burns"}}', "drop.ring"),
        ('{"delay": {"next": 1}}', "seconds"),
        ('{"delay": {"next": 1, "seconds": 1e9}}', "delay.seconds"),
        ('{"duplicate": {"next": 1, "extra": 0}}', "duplicate.extra"),
        ('{"silence": "pod"}', "silence"),
        ('{"tokens": {"prepend": [-1]}}', "tokens.prepend"),
    ],
)
def test_refused_wishes(body: str, place: str) -> None:
    """The sentence names the field."""
    with pytest.raises(ApiError, match="faults: ") as refused:
        faults.decode(body)
    assert place in refused.value.message
