"""KV events: one msgpack payload of an engine decoded into plain records, whatever its age (spec/kv.md 1.7).

Accepted: batches and events as positional arrays or as maps, each decided for itself; batches without a rank; hashes of
any integer width, signed or not, or as bytes; SGLang's arrays with a map at their end. Unknown fields, trailing positions
and event types are ignored, and so is what a publisher says of blocks elsewhere (`locality` REMOTE). A bad event costs
itself, never its batch; a bad batch costs itself, never its stream. `decode` does not raise: what was wrong is in
`Batch.errors` as low-cardinality reasons.

Knows neither sequence numbers (`sequence`) nor who holds what (`index`). Called by the event source's thread; pure.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from epp.domain import GPU, EngineHash, medium_name
from epp.kvcache.keys import NO_EXTRAS, TOKEN_BYTES, Extras, engine_hash, pack_tokens, salt_extras, wire_extras
from epp.kvcache.unpack import unpack

# No engine has more to say in one step; a batch with more errors than this is not looked at further.
MAX_ERRORS: Final = 100
# To clear a cache takes as long as so many blocks.
_CLEAR_BLOCKS: Final = 16
# What Python makes of an event, of a block it names, and of an extra of one.
_EVENT_BYTES: Final = 256
_BLOCK_BYTES: Final = 40
_EXTRA_BYTES: Final = 160

# Position -> field of the array layout since vLLM 0.8.5; later versions only appended (spec/kv.md 1.7.1).
_STORED_FIELDS: Final = (
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_REMOVED_FIELDS: Final = ("type", "block_hashes", "medium", "group_idx")
_BATCH_FIELDS: Final = ("ts", "events", "data_parallel_rank")
_ELSEWHERE: Final = "REMOTE"


@dataclass(slots=True)
class BlockStored:
    """Blocks now in the cache, in chain order. Dense, unless `tokens` says otherwise: groups that skip blocks exist (1.10)."""

    hashes: list[EngineHash]
    parent: EngineHash | None
    """Block just before the first token; None where the span starts at token 0."""
    tokens: bytes
    """Ids of the whole span, packed as by `keys.pack_tokens`; empty in placeholders of offloaders."""
    block_size: int
    """Tokens a block; 0 in placeholders."""
    lora: str | None = None
    medium: str = GPU
    """As by `domain.medium_name`."""
    extras: list[Extras] | None = None
    """Canonical, one a block; None: no block has any."""
    group: int | None = None
    kind: str | None = None
    """KV cache spec kind of the group; None where the engine does not say."""


@dataclass(slots=True)
class BlockRemoved:
    """One physical copy of each of these blocks is gone."""

    hashes: list[EngineHash]
    medium: str = GPU
    group: int | None = None


@dataclass(slots=True)
class AllCleared:
    """The whole cache is empty."""


Event = BlockStored | BlockRemoved | AllCleared


@dataclass(slots=True)
class Batch:
    """What one engine step published."""

    ts: float | None
    """Unix seconds of the engine's host; None where the payload does not tell."""
    rank: int | None = None
    events: list[Event] | tuple[Event, ...] = ()
    errors: tuple[str, ...] = ()
    """One reason for each event, or for the batch, that could not be decoded."""
    unread: bool = False
    """It said more than this, and nobody knows what."""


class _MalformedError(ValueError):
    """`str()` is the reason."""


def decode(payload: bytes) -> Batch:
    """One KVEventBatch. An undecodable payload gives a Batch without events and one error."""
    try:
        fields = _as_fields(unpack(payload), _BATCH_FIELDS, "payload")
    except (ValueError, TypeError, RecursionError, MemoryError):  # what msgspec raises on garbage, bombs and odd map keys
        return Batch(ts=None, errors=("payload",), unread=True)
    events: list[Event] = []
    errors: list[str] = []
    raw_events = fields.get("events")
    unread = False
    if isinstance(raw_events, list | map):
        for raw in raw_events:
            try:
                event = _event(raw)
            except _MalformedError as error:
                errors.append(str(error))
                if len(errors) == MAX_ERRORS:
                    unread = True
                    break
            else:
                if event is not None:
                    events.append(event)
            del raw  # its lists, before the next is decoded
    else:
        errors.append("payload")
        unread = True
    rank = fields.get("data_parallel_rank")
    return Batch(_timestamp(fields.get("ts")), rank if isinstance(rank, int) else None, events, tuple(errors), unread)


def blocks(batch: Batch) -> int:
    """How many it names, repetitions included; an event counts as one itself."""
    return sum(1 if isinstance(event, AllCleared) else 1 + len(event.hashes) for event in batch.events)


def weight(batch: Batch) -> int:
    """Bytes of memory the batch takes, roughly."""
    size = _EVENT_BYTES
    for event in batch.events:
        size += _EVENT_BYTES
        if isinstance(event, BlockStored):
            size += len(event.tokens)
            if event.extras is not None:
                size += _EXTRA_BYTES * sum(map(len, event.extras))
        if not isinstance(event, AllCleared):
            size += _BLOCK_BYTES * len(event.hashes)
    return size


def slices(batch: Batch, max_blocks: int) -> Iterator[Batch]:
    """The batch cut into parts of about `max_blocks` blocks, so that none takes long to apply; long events are cut too."""
    part: list[Event] = []
    blocks = 0
    errors = batch.errors
    for whole in batch.events:
        for event in _pieces(whole, max_blocks):
            part.append(event)
            blocks += _CLEAR_BLOCKS if isinstance(event, AllCleared) else max(1, len(event.hashes))
            if blocks >= max_blocks:
                yield Batch(batch.ts, batch.rank, part, errors)
                part, blocks, errors = [], 0, ()
    if part or errors:
        yield Batch(batch.ts, batch.rank, part, errors)


def _pieces(event: Event, max_blocks: int) -> Iterable[Event]:
    """The same said in several events, where that is possible: a span that is not dense cannot be cut."""
    if isinstance(event, AllCleared) or len(event.hashes) <= max_blocks:
        return (event,)
    starts = range(0, len(event.hashes), max_blocks)
    if isinstance(event, BlockRemoved):
        return (replace(event, hashes=event.hashes[start : start + max_blocks]) for start in starts)
    width = event.block_size * TOKEN_BYTES
    if not width or len(event.tokens) != width * len(event.hashes):
        return (event,)
    return (
        replace(
            event,
            hashes=event.hashes[start : start + max_blocks],
            parent=event.hashes[start - 1] if start else event.parent,
            tokens=event.tokens[start * width : (start + max_blocks) * width],
            extras=event.extras[start : start + max_blocks] if event.extras else None,
        )
        for start in starts
    )


def _as_fields(raw: object, names: tuple[str, ...], reason: str) -> dict[str, object]:
    if isinstance(raw, dict):
        return raw
    if isinstance(raw, list):
        return dict(zip(names, raw, strict=False))
    raise _MalformedError(reason)


def _timestamp(raw: object) -> float | None:
    return float(raw) if isinstance(raw, int | float) and math.isfinite(raw) else None


def _event(raw: object) -> Event | None:
    if isinstance(raw, dict):
        tag: object = raw.get("type")
    elif isinstance(raw, list) and raw:
        tag = raw[0]
    else:
        raise _MalformedError("event")
    match tag:
        case "BlockStored":
            fields = _stored_fields(raw)
            return None if fields.get("locality") == _ELSEWHERE else _stored(fields)
        case "BlockRemoved":
            fields = _as_fields(raw, _REMOVED_FIELDS, "event")
            if fields.get("locality") == _ELSEWHERE:
                return None
            return BlockRemoved(_hashes(fields), _medium(fields), _group(fields))
        case "AllBlocksCleared":
            return AllCleared()
        case str():
            return None
        case _:
            raise _MalformedError("event")


def _stored_fields(raw: object) -> dict[str, object]:
    if isinstance(raw, list) and isinstance(raw[-1], dict):  # SGLang
        return {**raw[-1], **_as_fields(raw[:-1], _STORED_FIELDS, "event")}
    return _as_fields(raw, _STORED_FIELDS, "event")


def _stored(fields: dict[str, object]) -> BlockStored:
    hashes = _hashes(fields)
    block_size = fields.get("block_size")
    if type(block_size) is not int or block_size < 0:
        raise _MalformedError("block_size")
    parent = fields.get("parent_block_hash")
    kind = fields.get("kv_cache_spec_kind")
    lora = _lora(fields)
    # Some publishers write the absent parent as 0.
    parent_hash = None if parent is None or parent == 0 else _hash(parent, "parent_block_hash")
    return BlockStored(
        hashes,
        parent_hash,
        _tokens(fields),
        block_size,
        lora,
        _medium(fields),
        _extras(fields, len(hashes), lora, starts_at_zero=parent_hash is None),
        _group(fields),
        kind if isinstance(kind, str) else None,
    )


def _hashes(fields: dict[str, object]) -> list[EngineHash]:
    raw = fields.get("block_hashes")
    if not isinstance(raw, list):
        raise _MalformedError("block_hashes")
    return [_hash(each, "block_hashes") for each in raw]


def _hash(raw: object, reason: str) -> EngineHash:
    if type(raw) is int or (isinstance(raw, bytes) and raw):
        return engine_hash(raw)
    raise _MalformedError(reason)


def _tokens(fields: dict[str, object]) -> bytes:
    raw = fields.get("token_ids")
    if not isinstance(raw, list):
        raise _MalformedError("token_ids")
    try:
        return pack_tokens(raw)
    except (TypeError, ValueError, OverflowError):
        raise _MalformedError("token_ids") from None


def _lora(fields: dict[str, object]) -> str | None:
    """Adapter name. A bare numeric id differs from engine to engine: without a name its blocks cannot be addressed."""
    name, lora_id = fields.get("lora_name"), fields.get("lora_id")
    if isinstance(name, str) and name:
        return name
    if isinstance(lora_id, str) and lora_id:  # a fork put the name here
        return lora_id
    if lora_id:
        raise _MalformedError("lora_without_name")
    return None


def _medium(fields: dict[str, object]) -> str:
    raw = fields.get("medium")
    if raw is None:
        return GPU
    if not isinstance(raw, str):
        raise _MalformedError("medium")
    return medium_name(raw)


def _group(fields: dict[str, object]) -> int | None:
    raw = fields.get("group_idx")
    if raw is not None and not isinstance(raw, int):
        raise _MalformedError("group_idx")
    return raw


def _extras(fields: dict[str, object], blocks: int, lora: str | None, *, starts_at_zero: bool) -> list[Extras] | None:
    raw = fields.get("extra_keys")
    if raw is None:
        salt = fields.get("cache_salt")
        if not (starts_at_zero and blocks and isinstance(salt, str) and salt):
            return None
        return [*salt_extras(salt), *[NO_EXTRAS] * (blocks - 1)]
    if not isinstance(raw, list) or len(raw) != blocks:
        raise _MalformedError("extra_keys")
    if raw.count(None) == blocks:
        return None
    try:
        return [wire_extras(entry, lora=lora, first=starts_at_zero and i == 0) for i, entry in enumerate(raw)]
    except ValueError:
        raise _MalformedError("extra_keys") from None
