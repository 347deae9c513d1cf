"""KV events and their encodings: byte for byte as vLLM 0.32 writes them, and as older engines do (spec/kv.md 1.7).

Pure. In 0.32 a batch is a msgpack array [ts, events, data_parallel_rank] and an event a map that begins with "type". Fields
without a default are always there, nil or not; the ones with a default only when set. The engine makes the records,
the publisher encodes them; epp.kvcache decodes them and shares no code with this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from epp.simulator.hashing import ExternalHash

GPU = "GPU"
FULL_ATTENTION = "full_attention"

# A model without hybrid layers has one cache group.
GROUP = 0


class EventFormat(Enum):
    """How a batch is written."""

    MAPS_IN_ARRAY = "maps-in-array"
    """vLLM 0.24 to 0.32: (C) of the specification."""
    MAPS = "maps"
    """Between the two, for some weeks: the batch is a map as well (B)."""
    ARRAYS = "arrays"
    """vLLM 0.17 to 0.23: fields by position (A), as many as the last of these versions had."""
    FIRST_ARRAYS = "first-arrays"
    """vLLM 0.8.5: the batch without a rank, events without medium or extra keys, and an adapter by its number only."""


@dataclass(slots=True)
class BlockStored:
    """Consecutive full blocks of one request entered the cache."""

    block_hashes: list[ExternalHash]
    parent_block_hash: ExternalHash | None
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

    block_hash: ExternalHash


@dataclass(slots=True)
class AllBlocksCleared:
    """The whole prefix cache was reset."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


def encode_batch(timestamp: float, events: Sequence[KvEvent], form: EventFormat = EventFormat.MAPS_IN_ARRAY, rank: int = 0) -> bytes:
    """The payload frame of one batch; `timestamp` in Unix seconds."""
    maps = [_fields(event) for event in events]
    match form:
        case EventFormat.MAPS_IN_ARRAY:
            return _encoder.encode([timestamp, maps, rank])
        case EventFormat.MAPS:
            return _encoder.encode({"ts": timestamp, "events": maps, "data_parallel_rank": rank})
        case EventFormat.ARRAYS:
            return _encoder.encode([timestamp, [list(fields.values()) for fields in maps], rank])
        case EventFormat.FIRST_ARRAYS:
            return _encoder.encode([timestamp, [[fields[name] for name in _FIRST_FIELDS if name in fields] for fields in maps]])


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


# The maps above have the order of the array layout, which only ever grew.
_FIRST_FIELDS = ("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id")

_encoder = msgspec.msgpack.Encoder()
