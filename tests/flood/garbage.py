"""What a broken or hostile publisher may send: one list of messages a kind. Pure, except that chance comes from a fixed seed.

A message is the frames after the topic: a sequence number is filled in where there is none, so that what follows it is looked at.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from epp.sources.kv_messages import MAX_MESSAGE_BYTES

BLOCK: Final = 16
LARGEST: Final = MAX_MESSAGE_BYTES - 64
"""Bytes of what is just not too large for a picker."""

Payloads = list[bytes]

_rng: Final = random.Random(5)
_encode: Final = msgspec.msgpack.Encoder().encode


def _stored(**fields: object) -> dict[str, object]:
    """A store of two blocks of nobody's tokens, but for what is given."""
    tokens = [_rng.randrange(100_000) for _ in range(2 * BLOCK)]
    hashes = [_rng.randrange(1 << 64) for _ in range(2)]
    event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "token_ids": tokens, "block_size": BLOCK}
    return {**event, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [None, None], "group_idx": 0, **fields}


def _batch(*events: object) -> bytes:
    return _encode([1.8e9 + _rng.random(), list(events), 0])


def _noise() -> Payloads:
    return [_rng.randbytes(_rng.choice((0, 1, 40, 4_000))) for _ in range(200)]


def _bombs() -> Payloads:
    """Little that claims to be much, deep, or a million things; the largest of them fill a message."""

    def array(count: int, rest: bytes) -> bytes:
        return b"\xdd" + count.to_bytes(4, "big") + rest

    head, size = b"\x93\xcb" + bytes(8), LARGEST - 32
    return [
        array(0xFFFFFFFF, b""),
        b"\xdf\xff\xff\xff\xff" + b"\x01" * 100,
        b"\x91" * 60_000,
        b"\x81\x01" * 60_000,
        b"\xc6\xff\xff\xff\xff" + b"x" * 1_000,
        *(head + array(count, b"\x90" * count) + b"\x00" for count in (4_000, 30_000, 60_000)),
        head + array(size, b"\x90" * size) + b"\x00",
        head + b"\x91\x82\xa4type\xabBlockStored\xacblock_hashes" + array(size - 64, b"\x80" * (size - 64)) + b"\x00",
        head + b"\x91\x81\xa1x" + array(size - 8, b"\xc0" * (size - 8)) + b"\x00",
        array(size, b"\x90" * size),
        _encode([1.0, [["BlockStored"] * 1_000] * 150, 0]),
    ]


def _changing_hashes() -> Payloads:
    """Whole numbers, bytes, negative ones, then what is no hash at all."""
    forms: list[Callable[[], object]] = [
        lambda: _rng.randrange(1 << 64),
        lambda: _rng.randbytes(32),
        lambda: -_rng.randrange(1 << 63),
        _rng.random,
        lambda: "hash",
        lambda: b"",
        lambda: [1],
    ]
    return [_batch(_stored(block_hashes=[form(), form()], parent_block_hash=form())) for form in forms * 20]


def _block_sizes() -> Payloads:
    return [_batch(_stored(block_size=size)) for size in (0, -1, 1, 1 << 40, 7, None, 16.0, "16", True, 1 << 63) for _ in range(10)]


def _spans() -> Payloads:
    """More or fewer tokens than the blocks have room for, ids that no vocabulary has, and what is no id."""
    whole = list(range(2 * BLOCK))
    spans: Sequence[object] = (
        *(whole[:-1], [*whole, 1], whole * 100, [], [1 << 32] * 32, [-1] * 32, [1 << 63] * 32, [1.5] * 32, ["a"] * 32, None, "tokens"),
        *(list(range(400_000)), list(range(100_000, 300_000)), list(range(256, 65_536)) * 4),
    )
    return [_batch(_stored(token_ids=span)) for span in spans for _ in range(5)]


def _liars() -> Payloads:
    """Parents nobody stored, blocks that are their own parents, removals of what never was, few and many; chains that are not remembered."""
    own = _rng.randrange(1 << 64)
    stores = [_stored(parent_block_hash=_rng.randrange(1 << 64)) for _ in range(300)]
    circles = [_stored(block_hashes=[own, own], parent_block_hash=own) for _ in range(20)]
    removals = [{"type": "BlockRemoved", "block_hashes": [_rng.randrange(1 << 64) for _ in range(50)], "medium": "GPU"} for _ in range(100)]
    large = [{"type": "BlockRemoved", "block_hashes": [_rng.randrange(1 << 64) for _ in range(200_000)]}]
    many = [["BlockRemoved", [_rng.randrange(1 << 64)]] for _ in range(32_000)]
    return [*(_batch(event) for event in (*stores, *circles, *removals)), *[_batch(*large), _batch(*many)] * 5]


def _odd_frames() -> list[list[bytes]]:
    one, number = _batch(_stored()), (1).to_bytes(8, "big")
    return [
        [b""],
        [b"", one],
        [b"", b"\x01", one],
        [b"", b"", one],
        [b"", number, one, one],
        [b"x"] * 40,
        [b"", number, b""],
        [b"\xff" * 300, number, one],
    ]


def kinds() -> dict[str, list[list[bytes] | bytes]]:
    """Messages by kind: payloads, or all frames where these are wrong."""
    return {
        "noise": list(_noise()),
        "msgpack bombs": list(_bombs()),
        "hashes that change their type": list(_changing_hashes()),
        "block sizes": list(_block_sizes()),
        "spans of tokens": list(_spans()),
        "lies about parents": list(_liars()),
        "frames of the wrong count": list(_odd_frames()),
        "large frames": [_rng.randbytes(LARGEST), [b"", (1).to_bytes(8, "big"), bytes(LARGEST + 200)]],
        "blocks nobody computed": [_batch(*(_stored() for _ in range(20))) for _ in range(400)],
    }
