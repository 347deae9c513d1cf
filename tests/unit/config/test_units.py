"""Go's durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.config.units import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("150ms", 0.15),
        ("2s", 2),
        ("1m30s", 90),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("-2s", -2),
        ("+1us", 1e-6),
        ("3µs", 3e-6),
        ("7ns", 7e-9),
    ],
)
def test_go_durations(text: str, seconds: float) -> None:
    """Every unit, sums, signs and fractions."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "2", "s", "2 s", "2s ", "1m-30s", "2S", "1d", "٢s", "2s\n", "--2s"])
def test_what_is_no_duration(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(ValueError, match='must be a duration such as "50ms"'):
        parse_duration(text)


@given(st.integers(0, 10**13))
def test_a_shown_duration_is_read_back(nanoseconds: int) -> None:
    """To the nanosecond."""
    assert round(parse_duration(format_duration(nanoseconds / 1e9)) * 1e9) == nanoseconds
