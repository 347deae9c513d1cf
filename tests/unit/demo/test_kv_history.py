"""What pods announced becomes a history of blocks named by their tokens."""

import msgspec

from epp.demo.blocks import BlockNames
from epp.demo.kv_history import announcements


def batch(time: float, *events: dict[str, object]) -> bytes:
    """One batch as vLLM 0.32 publishes it."""
    return msgspec.msgpack.encode([time, list(events), 0])


def stored(engine_hash: int, tokens: list[int]) -> dict[str, object]:
    """The first block of a prompt."""
    return {
        "type": "BlockStored",
        "block_hashes": [engine_hash],
        "parent_block_hash": None,
        "token_ids": tokens,
        "block_size": 2,
        "lora_id": None,
    }


def test_a_cleared_cache_begins_a_new_history() -> None:
    """Blocks of before, also of the same engine step, were never there for the requests that follow."""
    clear: dict[str, object] = {"type": "AllBlocksCleared"}
    names = BlockNames(2)
    history = announcements("a", [batch(1.0, stored(7, [1, 2])), batch(2.0, stored(8, [3, 4]), clear, stored(9, [5, 6]))], names)
    assert [(one.time, one.stored) for one in history] == [(2.0, tuple(names.chain([5, 6])))]
