"""Who is taken to be reachable, by what polls of its /metrics were signs of."""

import pytest

from epp.sources.reachability import SILENT_S, UNBELIEVED_S, Reachability, Sign

SIGNS = {"a": Sign.ANSWERED, "r": Sign.REFUSED, "s": Sign.SILENT, "?": Sign.UNCLEAR}


@pytest.mark.parametrize(
    ("seen", "reachable"),
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
        ("d", False),
        ("ad", False),
        ("adr", False),
        ("ads", False),
        ("ad?", False),
        ("ada", True),
        ("adra", True),
        ("adad", True),
        ("adaaaaaaaaad", True),
        ("adaaaaaaaaaad", False),
        ("adadrr", False),
        ("adrad", False),
        ("adrdad", False),
        ("arrdad", False),
        ("arrad", False),
        ("dA", False),
        ("adA", False),
        ("adAr", False),
        ("adAa", True),
        ("adAad", True),
        ("adAd", False),
        ("adRr", False),
        ("adRa", True),
        ("arrA", False),
        ("aRR", False),
    ],
)
def test_what_is_seen(seen: str, reachable: bool | None) -> None:  # noqa: FBT001  # a parameter of the test
    """One second apart, polls: a = answered, r = refused, s = silent, ? = unclear; d = the data plane got no connection.

    It is believed at once, until a poll is answered; where that was the next one, it is not believed again for ten seconds.
    A poll that was under way when it was believed (capital letters) is neither.
    """
    reach = Reachability()
    for second, what in enumerate(seen):
        if what == "d":
            reach.doubt(float(second))
        else:
            reach.saw(SIGNS[what.lower()], float(second), anew=reach.reachable is False and what.islower())
    assert reach.reachable is reachable


def test_each_change_is_news_once() -> None:
    """So that it is told and logged once."""
    reach = Reachability()
    polls = [("a", 0.0), ("a", 0.0), ("r", 0.0), ("r", 0.0), ("r", 0.0), ("s", 0.0), ("s", 2 * SILENT_S), ("a", 0.0), ("a", 0.0)]
    news = [reach.saw(SIGNS[sign], at, anew=True) for sign, at in polls]
    assert news == [True, False, False, True, False, False, False, True, False]
    assert [reach.doubt(0.0), reach.doubt(0.0)] == [True, False]
    assert [reach.saw(sign, 0.0, anew=True) for sign in (Sign.REFUSED, Sign.REFUSED, Sign.ANSWERED)] == [False, False, True]
    assert reach.doubt(UNBELIEVED_S)
