"""Who is taken to be reachable, by how polls of its /metrics went."""

import pytest

from epp.sources.reachability import SILENT_S, Reachability


@pytest.mark.parametrize(
    ("polls", "reachable"),
    [
        ("", None),
        ("a", True),
        ("ar", True),
        ("arr", False),
        ("rr", False),
        ("rarar", True),
        ("arra", True),
        ("ass", True),
        ("asssssssssss", False),
        ("sssssasssss", True),
        ("rsrsr", None),
        ("assssssssssssa", True),
    ],
)
def test_what_polls_show(polls: str, reachable: bool | None) -> None:  # noqa: FBT001  # a parameter of the test
    """One second apart: a = answered, r = refused, s = silent."""
    reach = Reachability()
    for second, poll in enumerate(polls):
        match poll:
            case "a":
                reach.answered()
            case "r":
                reach.refused()
            case _:
                reach.silent(float(second))
    assert reach.reachable is reachable


def test_each_change_is_news_once() -> None:
    """So that it is told and logged once."""
    reach = Reachability()
    assert [reach.answered(), reach.answered()] == [True, False]
    assert [reach.refused(), reach.refused(), reach.refused()] == [False, True, False]
    assert [reach.silent(0.0), reach.silent(2 * SILENT_S)] == [False, False]
    assert [reach.answered(), reach.answered()] == [True, False]
