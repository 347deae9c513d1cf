"""Block keys: our own name of a block and of all tokens before it.

A key is a chain hash over (parent key, token bytes, extras), rooted in the LoRA name and the block size (spec/kv.md 2,
"Why own-hash index works"). The same function serves both sides, events and requests, so they meet on equal keys
whatever seed, algorithm or version an engine has. Extras are what enters an engine's block hash beside tokens.

Must not be stored or sent anywhere: Python's `hash` is seeded per process. That seed is also what keeps a client from
constructing collisions, so the process must not run with PYTHONHASHSEED=0. Measured per block of 16 tokens: 0.13 us,
against 0.57 us for blake2b. Engines' hashes are mixed with the same seed, so that no engine chooses where in our tables
its blocks go: dicts of plain integers degrade when somebody does. Called by `events` (thread of the event source) and `index` (event loop); pure.
"""

from array import array
from collections.abc import Sequence
from struct import Struct
from typing import cast

from epp.domain import BlockKey, EngineHash, MediaSpan, TokenIds

TOKEN_BYTES = array("I").itemsize
_ENGINE_HASH_BYTES = 8
_MASK = (1 << 64) - 1
# Of 64 bits these are kept: CPython's integers take 16 bytes more beyond, and those of `tree` have a sign.
_SHORT = (1 << 60) - 1

Extras = tuple[tuple[object, ...], ...]
"""Extras of one block, in the engine's order: ("salt", salt), ("mm", identifier, offset), ("mm", identifier), ("embeds", digest)."""

NO_EXTRAS: Extras = ()


def pack_tokens(tokens: TokenIds) -> bytes:
    """Token ids as packed unsigned 32-bit integers; raises TypeError, ValueError or OverflowError on anything else."""
    if isinstance(tokens, array) and tokens.typecode == "I":
        return tokens.tobytes()
    return array("I", tokens).tobytes()


def engine_hash(raw: int | bytes) -> EngineHash:
    """What an engine calls a block, by the low 64 bits: engines that publish integers publish the last 8 bytes of the digest (1.7.3)."""
    if isinstance(raw, bytes):
        return EngineHash(hash(raw[-_ENGINE_HASH_BYTES:].rjust(_ENGINE_HASH_BYTES, b"\0")) & _SHORT)
    return EngineHash(hash((raw & _MASK).to_bytes(_ENGINE_HASH_BYTES, "big")) & _SHORT)


def root_key(lora: str | None, block_size: int) -> BlockKey:
    """Parent of the block at token 0. `lora` None is the base model."""
    return BlockKey(hash(("epp", lora, block_size)) & _SHORT)


def chain_keys(parent: BlockKey, packed: bytes, block_size: int, extras: Sequence[Extras] = ()) -> list[BlockKey]:
    """Keys of the full blocks of `packed` that follow `parent`; `extras` belong to the first blocks, the rest have none."""
    width = block_size * TOKEN_BYTES
    full = len(packed) // width * width
    # One C-level iteration cuts the blocks, each as a 1-tuple: half the time of slicing in Python.
    blocks = Struct(f"{width}s").iter_unpack(memoryview(packed)[:full])
    key: int = parent
    short = _SHORT
    keys = [key := hash((key, block, extra) if extra else (key, block)) & short for extra, block in zip(extras, blocks, strict=False)]
    keys += [key := hash((key, block)) & short for block in blocks]
    return cast("list[BlockKey]", keys)


def salt_extras(cache_salt: str | None) -> tuple[Extras, ...]:
    """Extras of a salted request: the salt enters the block at token 0 only (spec/kv.md 1.8)."""
    return ((("salt", cache_salt),),) if cache_salt else ()


def request_extras(block_size: int, cache_salt: str | None, media: Sequence[MediaSpan] = ()) -> tuple[Extras, ...]:
    """Extras of a request's first blocks: media on each block they touch, in front of the salt (spec/kv.md 1.8).

    Media must lie within the prompt: the work grows with the last one's end.
    """
    salt = salt_extras(cache_salt)
    if not media:
        return salt
    touched: list[list[tuple[object, ...]]] = [[] for _ in range(-(-max(span.offset + span.length for span in media) // block_size))]
    for span in media:
        for block in range(span.offset // block_size, -(-(span.offset + span.length) // block_size)):
            touched[block].append(("mm", span.identifier, span.offset - block * block_size))
    return ((*touched[0], *(salt[0] if salt else NO_EXTRAS)), *map(tuple, touched[1:]))


def prompt_keys(
    packed: bytes, block_size: int, *, lora: str | None = None, cache_salt: str | None = None, media: Sequence[MediaSpan] = ()
) -> list[BlockKey]:
    """Keys of the full blocks of one prompt, first to last."""
    return chain_keys(root_key(lora, block_size), packed, block_size, request_extras(block_size, cache_salt, media))


def wire_extras(entry: object, *, lora: str | None, first: bool) -> Extras:
    """Canonical form of one block's `extra_keys` entry as engines publish it, untagged (spec/kv.md 1.8).

    `first`: the block starts at token 0, the only one a salt belongs to. The LoRA name an engine repeats on every block
    is consumed: the chain's root already says it. Raises ValueError for shapes nobody is known to send.
    """
    if entry is None:
        return NO_EXTRAS
    items = [entry] if isinstance(entry, str) else entry
    if not isinstance(items, list | tuple):
        raise ValueError("extra_keys")  # noqa: TRY004 - wire data, not a programming error
    if lora is not None and items and items[0] == lora:
        items = items[1:]
    return tuple(_wire_extra(item, first=first) for item in items)


def _wire_extra(item: object, *, first: bool) -> tuple[object, ...]:
    match item:
        case str():
            # On a later block a bare string can only be the multimodal id of engines before offsets were sent.
            return ("salt", item) if first else ("mm", item)
        case [str(identifier), int(offset)]:
            return ("mm", identifier, offset)
        case bytes():
            return ("embeds", item)
        case _:
            raise ValueError("extra_keys")
