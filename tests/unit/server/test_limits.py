"""A token bucket."""

from epp.server.limits import Allowance


def test_a_burst_then_a_rate() -> None:
    """So many at once; afterwards as many as time has brought back, never more than a burst."""
    allowance = Allowance(3, 10.0)
    assert [allowance.take(5.0) for _ in range(4)] == [True, True, True, False]
    allowance.refill()
    assert [allowance.take(5.0) for _ in range(3)] == [True] * 3
    assert [allowance.take(5.2) for _ in range(3)] == [True, True, False]
    assert [allowance.take(100.0) for _ in range(4)] == [True, True, True, False]
