"""Block keys: equal exactly where an engine could share the block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import BlockKey
from epp.kvcache.keys import chain_keys, pack_tokens, prompt_keys, root_key, salt_extras, wire_extras

TOKENS = pack_tokens(range(100, 116))


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=60), st.integers(1, 9), st.data())
def test_a_chain_is_the_same_in_one_go_and_in_pieces(tokens: list[int], block_size: int, data: st.DataObject) -> None:
    """An engine may announce a prompt in any number of events; their keys are those of the request."""
    whole = prompt_keys(pack_tokens(tokens), block_size, lora="a", cache_salt="s")
    pieces: list[BlockKey] = []
    parent = root_key("a", block_size)
    while len(pieces) < len(whole):
        count = data.draw(st.integers(1, len(whole) - len(pieces)))
        span = tokens[len(pieces) * block_size : (len(pieces) + count) * block_size]
        extras = salt_extras("s") if not pieces else ()
        pieces += chain_keys(parent, pack_tokens(span), block_size, extras)
        parent = pieces[-1]

    assert len(whole) == len(tokens) // block_size
    assert pieces == whole


@pytest.mark.parametrize(
    "other",
    [
        prompt_keys(pack_tokens(range(101, 117)), 4),
        prompt_keys(TOKENS, 4, lora="a"),
        prompt_keys(TOKENS, 4, cache_salt="s"),
        prompt_keys(TOKENS, 2),
        chain_keys(root_key(None, 4), TOKENS, 4, [(("mm", "image", 0),)]),
        chain_keys(root_key(None, 4), TOKENS, 4, [(("mm", "image"),)]),
        chain_keys(root_key("s", 4), TOKENS, 4, salt_extras("s")),
    ],
    ids="tokens lora salt block-size image image-without-offset lora-and-salt".split(),
)
def test_what_differs_for_the_engine_differs_from_the_first_block_on(other: list[int]) -> None:
    """Other tokens, adapter, salt, image or block size at the front: no block in common."""
    assert not set(prompt_keys(TOKENS, 4)) & set(other)


def test_a_common_prefix_has_common_keys_up_to_the_first_difference() -> None:
    """Two prompts share keys as far as they share whole blocks."""
    one = prompt_keys(pack_tokens([1, 2, 3, 4, 5, 6, 7, 8]), 2)
    two = prompt_keys(pack_tokens([1, 2, 3, 4, 5, 9, 7, 8]), 2)

    assert [a == b for a, b in zip(one, two, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("salt", [None, ""])
def test_no_salt(salt: str | None) -> None:
    """An empty salt is none, as for vLLM."""
    assert prompt_keys(TOKENS, 4, cache_salt=salt) == prompt_keys(TOKENS, 4)


@pytest.mark.parametrize(
    ("entry", "lora", "first", "expected"),
    [
        (None, None, True, ()),
        ([], None, True, ()),
        (["salt"], None, True, (("salt", "salt"),)),
        ("salt", None, True, (("salt", "salt"),)),
        (["a"], "a", True, ()),
        (["a", "a"], "a", True, (("salt", "a"),)),
        (["b"], "a", True, (("salt", "b"),)),
        (["image"], None, False, (("mm", "image"),)),
        ([["image", -7]], None, False, (("mm", "image", -7),)),
    ],
)
def test_extras_on_the_wire(entry: object, lora: str | None, *, first: bool, expected: object) -> None:
    """Untagged wire entries get their meaning from the LoRA name and the block's place."""
    assert wire_extras(entry, lora=lora, first=first) == expected
