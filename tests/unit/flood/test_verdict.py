"""A flood fails where anybody but the publisher pays for it: each way has its row."""

from collections import Counter

import pytest

from tests.flood.verdict import MAX_GROWTH_BYTES, Phase, checks, render

MIB = 1 << 20


def a_phase(**changes: object) -> Phase:
    """One in which all is well, but for the changes."""
    phase = Phase("noise", 10.0, messages=20_000, bytes=30 * MIB, heard_s=2.0, requests=10, latencies=[0.1] * 10)
    phase.resident_before, phase.resident_highest = 200 * MIB, 210 * MIB
    phase.expected_ends, phase.ends = 7, {0.1: 5, 0.5: 7, 2.5: 7, float("inf"): 7}
    phase.errors["payload"] = 9
    for name, value in changes.items():
        setattr(phase, name, value)
    return phase


def failed(phase: Phase) -> list[str]:
    return [check.name for check in checks(phase) if not check.passed]


def test_nothing_to_complain_about() -> None:
    """The table tells the rate while anybody listened, the bucket of the slowest event and the memory."""
    assert not failed(a_phase())
    row = render([a_phase()]).splitlines()[1]
    assert all(cell in row for cell in ("10,000", "15", "2.0 of 10 s", "100/100 ms", "0.5 s", "+10.0 MiB", "9 payload"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"lost": ["request 3: status 503"]}, "no request lost"),
        ({"requests": 0}, "no request lost"),
        ({"resident_highest": 200 * MIB + MAX_GROWTH_BYTES + 1}, "at most 64 MiB more"),
        ({"ends": {0.5: 6, 2.5: 7}}, "the other pods' events within 1 s"),
        ({"ends": {0.5: 6, 2.5: 6}}, "the other pods' events within 1 s"),
        ({"others_gaps": 1}, "the other pods' streams whole"),
        ({"others_unheard": 1}, "the other pods' streams whole"),
        ({"errors": Counter()}, "counted"),
    ],
)
def test_what_fails(changes: dict[str, object], name: str) -> None:
    """And the table says so."""
    assert failed(a_phase(**changes)) == [name]
    assert f"FAILED with noise: {name}" in render([a_phase(**changes)])


def test_without_garbage_nothing_has_to_be_counted() -> None:
    """And memory may still be growing into its size."""
    assert not failed(a_phase(messages=0, errors=Counter(), resident_highest=400 * MIB))
