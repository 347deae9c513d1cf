"""Who is taken to be reachable, by what polls of its /metrics were signs of."""

import pytest

from epp.sources.reachability import SILENT_S, Reachability, Sign

SIGNS = {"a": Sign.ANSWERED, "r": Sign.REFUSED, "s": Sign.SILENT, "?": Sign.UNCLEAR}


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
        ("ar?r", True),
        ("a?????????????", True),
        ("asssss?sssss", True),
        ("asssssrsssss", True),
        ("rr?", False),
        ("??", None),
    ],
)
def test_what_polls_show(polls: str, reachable: bool | None) -> None:  # noqa: FBT001  # a parameter of the test
    """One second apart: a = answered, r = refused, s = silent, ? = unclear."""
    reach = Reachability()
    for second, poll in enumerate(polls):
        reach.saw(SIGNS[poll], float(second))
    assert reach.reachable is reachable


def test_each_change_is_news_once() -> None:
    """So that it is told and logged once."""
    reach = Reachability()
    polls = [("a", 0.0), ("a", 0.0), ("r", 0.0), ("r", 0.0), ("r", 0.0), ("s", 0.0), ("s", 2 * SILENT_S), ("a", 0.0), ("a", 0.0)]
    news = [reach.saw(SIGNS[sign], at) for sign, at in polls]
    assert news == [True, False, False, True, False, False, False, True, False]
