"""What a peer may send: so much a second, so much at once, and more where nobody looked."""

import pytest

from epp.sources.kv_messages import EXCUSE_LASTS_S, MAX_EXCUSED_S, Allowance

RATE, BURST = 100, 200


def most(allowance: Allowance, now: float) -> int:
    """How much passes at once."""
    passed = 0
    while allowance.take(1, now):
        passed += 1
    return passed


@pytest.mark.parametrize(
    ("spent", "silent_s", "excused_s", "passes"),
    [
        (0, 0.0, 0.0, BURST),
        (BURST, 1.0, 0.0, RATE),
        (0, 10.0, 10.0, BURST + 10 * RATE),
        (BURST, 10.0, 10.0, 10 * RATE),
        (BURST, 12.0, 10.0, BURST + 10 * RATE),
        (BURST, 0.01, 0.01, 1),
        (0, 3600.0, 3600.0, BURST + MAX_EXCUSED_S * RATE),
    ],
)
def test_what_nobody_looked_for_may_come_on_top(spent: int, silent_s: float, excused_s: float, passes: int) -> None:
    """As much as could have come in that time, up to a bound, and no more: many short excuses are no way around the rate."""
    allowance = Allowance((RATE, BURST), 0.0)
    assert allowance.take(spent, 0.0)
    if excused_s:
        allowance.excuse(min(excused_s, MAX_EXCUSED_S), silent_s)
    assert most(allowance, silent_s) == pytest.approx(passes, abs=1)


def test_an_excuse_ends() -> None:
    """What comes long after is what it is, a flood."""
    allowance = Allowance((RATE, BURST), 0.0)
    allowance.excuse(30.0, 30.0)
    assert allowance.take(1, 30.0 + EXCUSE_LASTS_S / 2)
    assert most(allowance, 30.0 + EXCUSE_LASTS_S) == BURST


def test_excuses_add_up_to_the_bound() -> None:
    """Of what was left unread several times in a row all may come, of what waited longer than any engine's words are worth not."""
    allowance = Allowance((RATE, BURST), 0.0)
    for now in (3.0, 6.0):
        allowance.excuse(3.0, now)
    assert most(allowance, 6.0) == BURST + 6 * RATE
    for now in range(20, 80, 10):
        allowance.excuse(10.0, now)
    assert most(allowance, 70.0) <= BURST + MAX_EXCUSED_S * RATE
