"""A dict in shards is still a dict, and a tighter one."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.kvcache.table import Table

PLACES = 64
KEYS = st.integers(-(1 << 63), 1 << 64)


def filled(entries: int, rng: random.Random) -> tuple[Table[int, int], dict[int, int]]:
    """The same in both."""
    table: Table[int, int] = Table(PLACES)
    model = {rng.getrandbits(60): number for number in range(entries)}
    for key, number in model.items():
        table[key] = number
    return table, model


def bytes_an_entry(table: Table[int, int]) -> float:
    shards = {id(shard): shard for shard in table.shards}.values()
    return sum(map(sys.getsizeof, shards)) / sum(map(len, shards))


def tighten(table: Table[int, int]) -> None:
    """All shards, one by one."""
    for _ in range(PLACES):
        table.tighten(1, 1_000)


@given(st.lists(st.tuples(st.sampled_from(["set", "del", "get", "tighten"]), KEYS, st.integers()), max_size=60))
def test_it_is_a_dict(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is done to both, they hold the same; negative keys have a place too."""
    table: Table[int, int] = Table(8)
    model: dict[int, int] = {}
    for what, key, value in steps:
        if what == "set":
            table[key] = model[key] = value
        elif what == "del" and key in model:
            del table[key], model[key]
        elif what == "tighten":
            table.tighten(1, 1)
        assert table.get(key) == model.get(key)
        assert all(table[held] == there for held, there in model.items())


@pytest.mark.parametrize("entries", range(4_000, 9_000, 500))
def test_it_takes_about_as_much_an_entry_at_any_size(entries: int) -> None:
    """One dict takes from 27 to 54 bytes, depending on how lately it has doubled; so do shards that all double at once."""
    table, _ = filled(entries, random.Random(entries))
    assert 34 < bytes_an_entry(table) < 48


def test_room_is_given_back_where_entries_come_and_go() -> None:
    """A cache that is full for hours takes what one takes that has just been filled."""
    rng = random.Random(1)
    table, model = filled(6_000, rng)
    fresh = bytes_an_entry(table)
    for gone in list(model):
        del table[gone], model[gone]
        key = rng.getrandbits(60)
        table[key] = model[key] = 0
    assert bytes_an_entry(table) > 1.3 * fresh

    tighten(table)
    assert bytes_an_entry(table) < 1.1 * fresh
    assert all(table[key] == value for key, value in model.items())


def test_room_is_given_back_when_nearly_everything_leaves() -> None:
    """So it is after a large endpoint has gone."""
    table, model = filled(50_000, random.Random(1))
    for key in list(model)[:-500]:
        del table[key], model[key]
    tighten(table)

    assert bytes_an_entry(table) < 80
    assert all(table[key] == value for key, value in model.items())


def test_room_is_given_back_in_slices() -> None:
    """A call that may do little looks until it finds a shard to make anew, and leaves the others to the next."""
    table, model = filled(50_000, random.Random(1))
    for key in list(model)[:40_000]:
        del table[key]
    shards = len({id(shard) for shard in table.shards})

    assert all(table.tighten(1_000, 1) for _ in range(shards))
    assert table.tighten(1_000, 1) == 0
