"""Long payloads are the same as short ones to whoever reads them, and little made to become much becomes nothing."""

import tracemalloc

import msgspec
import pytest

from epp.kvcache.events import decode, weight
from epp.kvcache.unpack import MALFORMED, MAX_EVENTS, MAX_FIELDS, MAX_LIST, MAX_LISTED, NESTED_BYTES, PLAIN_BYTES, unpack
from epp.sources.kv_messages import MAX_MESSAGE_BYTES

encode = msgspec.msgpack.Encoder().encode
TOKENS = list(range(PLAIN_BYTES))
STORED = {
    "type": "BlockStored",
    "block_hashes": [1 << 63, b"\x01" * 32, -5],
    "parent_block_hash": None,
    "token_ids": TOKENS,
    "block_size": 16,
    "medium": "GPU",
    "extra_keys": [None, ["adapter"], [["picture", -3]]],
    "session": {"of": "someone"},
}
REMOVED = {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU"}
ODD = [5, "text", None, [], {}]


@pytest.mark.parametrize(
    "batch",
    [
        [1.5, [STORED, REMOVED, *ODD], 0],
        {"ts": 1.5, "events": [STORED, *ODD], "data_parallel_rank": None},
        [1.5, [list(STORED.values()), list(REMOVED.values())]],
        [1.5, [REMOVED] * 5_000, 0],
        [1.5, [{**STORED, "extra_keys": [None] * 200_000}], 0],
    ],
    ids=["maps in an array", "maps", "arrays", "many removals", "many blocks"],
)
def test_a_long_batch_is_decoded_as_it_is(batch: object) -> None:
    """But for events that are no array and no map: they are marked."""
    payload = encode(batch)
    assert len(payload) > PLAIN_BYTES
    expected = msgspec.msgpack.decode(payload)
    events = expected["events"] if isinstance(expected, dict) else expected[1]
    events[:] = [event if isinstance(event, list | dict) else MALFORMED for event in events]
    assert whole(unpack(payload)) == expected


def whole(unpacked: object) -> object:
    """Its events, which are decoded one after the other, in a list."""
    if isinstance(unpacked, dict):
        return {name: list(part) if isinstance(part, map) else part for name, part in unpacked.items()}
    assert isinstance(unpacked, list)
    return [list(part) if isinstance(part, map) else part for part in unpacked]


def array(entries: int, rest: bytes) -> bytes:
    return b"\xdd" + entries.to_bytes(4, "big") + rest


SIZE = 3 << 20
EMPTY = b"\x90" * SIZE
HEAD = b"\x93\xcb" + bytes(8)
BOMBS = {
    "a batch of empty arrays": array(SIZE, EMPTY),
    "events that are empty arrays": HEAD + array(SIZE, EMPTY) + b"\x00",
    "a list of a million of something": HEAD + b"\x91\x81\xa1x" + array(SIZE, b"\xc0" * SIZE) + b"\x00",
    "a field of empty arrays": HEAD + b"\x91\x81\xa1x" + array(SIZE, EMPTY) + b"\x00",
    "an event of empty maps": HEAD + b"\x91" + array(SIZE, b"\x80" * SIZE) + b"\x00",
    "many fields of some": HEAD + array(60, (b"\x81\xa1x" + array(SIZE // 60, b"\x90" * (SIZE // 60))) * 60) + b"\x00",
    "deeper than anything": HEAD + b"\x91\x81\xa1x" + b"\x91" * SIZE,
    "more than there is": HEAD + b"\xdd\xff\xff\xff\xff" + EMPTY,
    "longer than there is": HEAD + b"\xc6\xff\xff\xff\xff" + EMPTY,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_stays_small(bomb: str) -> None:
    """It costs an event, or the batch, and a few times its own size; plainly decoded some become hundreds of megabytes."""
    tracemalloc.start()
    try:
        whole(unpack(BOMBS[bomb]))
    except (ValueError, RecursionError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 * NESTED_BYTES + 64 * MAX_EVENTS + SIZE


def test_an_event_that_is_too_much_costs_only_itself() -> None:
    """The next one is read."""
    wide = {str(i): "x" * PLAIN_BYTES for i in range(MAX_FIELDS + 1)}
    nested = {"type": "x", "field": [[]] * (NESTED_BYTES + 1)}
    long = {"type": "x", "field": [0] * (MAX_LIST + 1)}
    read = [[0] * MAX_LIST] * (MAX_LISTED // MAX_LIST - 1)
    events = [wide, nested, long, read, STORED, [[0] * MAX_LIST], REMOVED]
    assert whole(unpack(encode([0.0, events, 0]))) == [0.0, [MALFORMED, MALFORMED, MALFORMED, read, STORED, MALFORMED, REMOVED], 0]


def test_an_engine_may_evict_as_much_in_a_step_as_a_message_holds() -> None:
    """Block by block. Of more events than that, in a shorter form, nothing is known, which is said."""
    removals: list[object] = [
        {"type": "BlockRemoved", "block_hashes": [(1 << 63) + i], "medium": "GPU", "group_idx": 0} for i in range(31_000)
    ]
    payload = encode([0.0, removals, 0])
    assert 0.9 * MAX_MESSAGE_BYTES < len(payload) < MAX_MESSAGE_BYTES
    batch = decode(payload)
    assert (len(batch.events), batch.errors, batch.unread) == (len(removals), (), False)

    batch = decode(encode([0.0, [["BlockRemoved", [i]] for i in range(MAX_EVENTS + 1)], 0]))
    assert (batch.events, batch.errors, batch.unread) == ((), ("payload",), True)


TOKENS_OF_3_BYTES = [*range(256, 65_536)] * 5
LARGE = {
    "tokens": [{**STORED, "token_ids": list(range(100_000, 300_000))}] * 2,
    "blocks": [{**REMOVED, "block_hashes": TOKENS_OF_3_BYTES[:MAX_LIST]}] * 2,
    "events": [["BlockRemoved", [5]]] * (MAX_EVENTS - 1),
    "extra keys": [{**STORED, "block_hashes": [7] * 40_000, "extra_keys": [[["a", 1]]] * 40_000, "token_ids": []}] * 5,
}


@pytest.mark.parametrize("events", LARGE.values(), ids=LARGE)
def test_what_is_read_of_a_message_takes_at_most_half_of_what_a_flood_may(events: list[object]) -> None:
    """While it is decoded, and no more than that is said to wait for the event loop afterwards."""
    payload = encode([0.0, events, 0])
    assert len(payload) < MAX_MESSAGE_BYTES
    tracemalloc.start()
    batch = decode(payload)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert kept < weight(batch) + (1 << 20)
