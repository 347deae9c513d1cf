"""KV events and their encoding, byte for byte as vLLM 0.32 writes them (spec/kv.md 1.7, encoding C).

Pure. A batch is a msgpack array [ts, events, data_parallel_rank]; an event is a map that begins with "type". Fields
without a default are always there, nil or not; the ones with a default only when set. The engine makes the records,
the publisher encodes them; epp.kvcache decodes them and shares no code with this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

GPU = "GPU"
FULL_ATTENTION = "full_attention"

# A model without hybrid layers has one cache group.
GROUP = 0


@dataclass(slots=True)
class BlockStored:
    """Consecutive full blocks of one request entered the cache."""

    block_hashes: list[int]
    parent_block_hash: int | None
    """Hash of the block before the first one; None at the start of the prompt."""
    token_ids: list[int]
    """Tokens of all blocks in one list."""
    block_size: int
    lora_id: int | None
    lora_name: str | None
    extra_keys: list[list[str] | None]
    """One entry a block."""


@dataclass(slots=True)
class BlockRemoved:
    """One physical copy of a block is gone; another copy may remain."""

    block_hash: int


@dataclass(slots=True)
class AllBlocksCleared:
    """The whole prefix cache was reset."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


def encode_batch(timestamp: float, events: Sequence[KvEvent], rank: int = 0) -> bytes:
    """The payload frame of one batch; `timestamp` in Unix seconds."""
    return _encoder.encode([timestamp, [_fields(event) for event in events], rank])


def _fields(event: KvEvent) -> dict[str, object]:
    if isinstance(event, AllBlocksCleared):
        return {"type": "AllBlocksCleared"}
    if isinstance(event, BlockRemoved):
        return {"type": "BlockRemoved", "block_hashes": [event.block_hash], "medium": GPU, "group_idx": GROUP}
    return {
        "type": "BlockStored",
        "block_hashes": event.block_hashes,
        "parent_block_hash": event.parent_block_hash,
        "token_ids": event.token_ids,
        "block_size": event.block_size,
        "lora_id": event.lora_id,
        "medium": GPU,
        "lora_name": event.lora_name,
        "extra_keys": event.extra_keys,
        "group_idx": GROUP,
        "kv_cache_spec_kind": FULL_ATTENTION,
    }


_encoder = msgspec.msgpack.Encoder()
