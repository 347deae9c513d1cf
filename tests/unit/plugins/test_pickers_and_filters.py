"""Pickers and the decode filter (spec/plugins.md 6.1, 6.5)."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.names import ROLE_LABEL
from epp.plugins.filters.decode import DecodeFilter
from epp.plugins.pickers.max_score import MaxScorePicker
from epp.plugins.pickers.params import PickerParams
from epp.plugins.pickers.random import RandomPicker
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators
from epp.testing.builders import make_cycle, make_endpoint

NONE = Collaborators()


def max_score(count: int = 1) -> MaxScorePicker:
    return MaxScorePicker("max-score-picker", PickerParams(max_num_of_endpoints=count), NONE)


def random_picker(count: int = 1) -> RandomPicker:
    return RandomPicker("random-picker", PickerParams(max_num_of_endpoints=count), NONE)


@given(totals=st.lists(st.floats(-3, 3), min_size=1, max_size=12), count=st.integers(-1, 14), seed=st.integers(0, 99))
def test_max_score_picks_the_best_best_first(totals: list[float], count: int, seed: int) -> None:
    """As many different candidates as asked for, none worse than one left out; not positive means one."""
    cycle = make_cycle([make_endpoint(i) for i in range(len(totals))], seed=seed)
    chosen = max_score(count).pick(cycle, cycle.endpoints, totals)
    picked = [totals[cycle.position[endpoint.id]] for endpoint in chosen]
    assert len({endpoint.id for endpoint in chosen}) == min(max(count, 1), len(totals))
    assert picked == sorted(totals, reverse=True)[: len(picked)]


@pytest.mark.parametrize("count", [1, 2])
def test_max_score_breaks_ties_by_chance(count: int) -> None:
    """Equal endpoints share the requests, or the first-listed would get every idle one."""
    dice, first = random.Random(1), Counter[str]()
    for _ in range(3000):
        cycle = make_cycle([make_endpoint(i) for i in range(4)])
        cycle.rng = dice
        first[max_score(count).pick(cycle, cycle.endpoints, [1.0, 1.0, 0.5, 1.0])[0].id] += 1
    assert set(first) == {"default/pod-0", "default/pod-1", "default/pod-3"}
    assert all(900 < times < 1100 for times in first.values())


def test_random_picker_ignores_totals() -> None:
    """Every candidate gets its share, and several chosen ones differ."""
    dice, first = random.Random(1), Counter[str]()
    for _ in range(3000):
        cycle = make_cycle([make_endpoint(i) for i in range(3)])
        cycle.rng = dice
        chosen = random_picker(2).pick(cycle, cycle.endpoints, [1.0, 0.0, 0.0])
        assert len({endpoint.id for endpoint in chosen}) == 2
        first[chosen[0].id] += 1
    assert len(first) == 3
    assert all(900 < times < 1100 for times in first.values())


def test_decode_filter_keeps_what_can_decode() -> None:
    """Decoding roles and endpoints without a role stay, in their order; others go."""
    roles = [None, "decode", "prefill", "both", "encode", "prefill-decode", "encode-prefill", "encode-prefill-decode", "Decode"]
    endpoints = [make_endpoint(i, labels={} if role is None else {ROLE_LABEL: role}) for i, role in enumerate(roles)]
    kept = DecodeFilter("decode-filter", NoParams(), NONE).filter(make_cycle(endpoints), endpoints)
    assert [roles[endpoints.index(endpoint)] for endpoint in kept] == [None, "decode", "both", "prefill-decode", "encode-prefill-decode"]
