"""Block hashes against the test vectors of spec/kv.md 2."""

import pytest

from epp.simulator.hashing import DEFAULT_SEED, BlockHasher, HashForm, external, wire_extra_keys


@pytest.mark.parametrize(
    ("seed", "root", "first", "second"),
    [
        (DEFAULT_SEED, "066b1e8987e02713", 1882140585328457242, 6148296418912391818),
        ("0", "1973e23848344dc4", 10362225831949560093, 13042856655721652796),
        ("42", "c0bc02c9fc92a494", 649359390096368487, 12934812457201290935),
    ],
)
def test_vectors(seed: str, root: str, first: int, second: int) -> None:
    """A chain of two blocks, the second with a cache salt, hashes as vLLM's does."""
    hasher = BlockHasher(seed)
    one = hasher.digest(None, [1, 2, 3, 4], None)
    two = hasher.digest(one, [5, 6, 7, 8], (("cache_salt", "S"),))
    assert (hasher.root[:8].hex(), external(one), external(two)) == (root, first, second)


@pytest.mark.parametrize(
    ("form", "hash_"), [(HashForm.INT, (1 << 64) - 2), (HashForm.SIGNED, -2), (HashForm.BYTES, b"\x01" * 24 + b"\xff" * 7 + b"\xfe")]
)
def test_forms_of_a_hash(form: HashForm, hash_: int | bytes) -> None:
    """Low 64 bits, without or with a sign, or all of it."""
    assert BlockHasher(form=form).external(b"\x01" * 24 + b"\xff" * 7 + b"\xfe") == hash_


def test_extra_keys_lose_tag_and_path_on_the_wire() -> None:
    """Events name adapter and salt bare, adapter first."""
    assert wire_extra_keys((("lora", "adapter-a", "/path"), ("cache_salt", "S"))) == ["adapter-a", "S"]
    assert wire_extra_keys(None) is None
