"""A dict in shards is still a dict."""

from hypothesis import given
from hypothesis import strategies as st

from epp.kvcache.table import Table

KEYS = st.integers(-(1 << 63), 1 << 64)


@given(st.lists(st.tuples(st.sampled_from(["set", "pop", "get", "drain"]), KEYS, st.integers()), max_size=60))
def test_it_is_a_dict(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is done to both, they hold the same; negative keys have a place too."""
    table: Table[int, int] = Table(8)
    model: dict[int, int] = {}
    for what, key, value in steps:
        if what == "set":
            table[key] = model[key] = value
        elif what == "pop":
            assert table.pop(key) == model.pop(key, None)
        elif what == "drain":
            assert sorted(table.drain()) == sorted(model.values())
            model.clear()
        assert table.get(key) == model.get(key)
        assert (key in table, len(table)) == (key in model, len(model))
