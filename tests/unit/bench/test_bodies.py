"""The bodies that are sent."""

import json

import pytest

from bench import bodies


@pytest.mark.parametrize("size", [600, 5120, 20_000])
def test_bodies_have_exactly_their_size_and_differ(size: int) -> None:
    """So that a figure for 5 KB is one for 5 KB, and no prompt is sent twice in a row."""
    made = bodies.chats(size, count=8)

    assert {len(body) for body in made} == {size}
    assert len(set(made)) == 8
    assert all(json.loads(body)["messages"][-1]["content"] for body in made)


def test_the_same_seed_makes_the_same_bytes() -> None:
    """Two runs measure the same."""
    assert bodies.chats(5120) == bodies.chats(5120)
