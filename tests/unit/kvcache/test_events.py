"""Every encoding engines were seen to publish, and what a decoder does with bytes no engine should send."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import EngineHash
from epp.kvcache.events import MAX_ERRORS, AllCleared, Batch, BlockRemoved, BlockStored, decode, slices
from epp.kvcache.keys import engine_hash, pack_tokens

TOKENS = [11, 12, 13, 14]
STORED = {
    "type": "BlockStored",
    "block_hashes": [7, 8],
    "parent_block_hash": 6,
    "token_ids": TOKENS,
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
}


def encode(*events: object, ts: object = 1.5, rank: object = 0) -> bytes:
    return msgspec.msgpack.encode([ts, list(events), rank])


def named(*raw: int) -> list[EngineHash]:
    """Our names of engine hashes."""
    return [engine_hash(each) for each in raw]


def stored(**changes: object) -> BlockStored:
    """The one event of a batch that holds STORED with these fields changed."""
    batch = decode(encode(STORED | changes))
    (event,) = batch.events
    assert isinstance(event, BlockStored)
    assert batch.errors == ()
    return event


@pytest.mark.parametrize(
    "payload",
    [
        [1.5, [STORED], 0],
        [1.5, [STORED]],
        {"ts": 1.5, "events": [STORED], "data_parallel_rank": 0},
        {"ts": 1.5, "events": [STORED]},
        [1.5, [["BlockStored", [7, 8], 6, TOKENS, 2, None]], 0],
        [1.5, [["BlockStored", [7, 8], 6, TOKENS, 2]]],
        [1.5, [["BlockStored", [7, 8], 6, TOKENS, 2, None, "GPU"]], None],
        [1.5, [["BlockStored", [7, 8], 6, TOKENS, 2, None, "gpu", None, [None, None], None, None, None, "later", {"x": 1}]], 0, "later"],
        [1.5, [STORED | {"locality": "LOCAL", "session_id": "s", "future": [1, {2: 3}]}], 0],
        [1.5, [STORED | {"medium": None, "extra_keys": [None, None]}], 0],
    ],
    ids="maps no-rank map-batch map-batch-no-rank v0.8.5 shortest with-medium positions-to-come fields-to-come nils".split(),
)
def test_one_event_in_every_layout(payload: object) -> None:
    """A stored event is the same record whatever layout its engine uses."""
    batch = decode(msgspec.msgpack.encode(payload))

    assert batch.ts == 1.5
    assert list(batch.events) == [BlockStored(named(7, 8), engine_hash(6), pack_tokens(TOKENS), 2)]
    assert batch.errors == ()


def test_all_kinds_of_events_and_both_layouts_mixed_in_one_batch() -> None:
    """Each event of a batch is decoded by its own layout, in order; types nobody knows yet are passed over."""
    batch = decode(
        encode(
            ["BlockRemoved", [1], "CPU", 3],
            {"type": "BlockRemoved", "block_hashes": [2], "medium": None},
            {"type": "BlockInactive", "block_hashes": [2]},
            ["Heartbeat"],
            ["AllBlocksCleared"],
            {"type": "AllBlocksCleared"},
            rank=2,
        )
    )

    expected = [BlockRemoved(named(1), "cpu", 3), BlockRemoved(named(2), "gpu", None), AllCleared(), AllCleared()]
    assert list(batch.events) == expected
    assert batch.errors == ()
    assert batch.rank == 2


@pytest.mark.parametrize(
    ("raw", "reduced"),
    [
        (5, 5),
        (1 << 31, 1 << 31),
        ((1 << 64) - 1, (1 << 64) - 1),
        (-1, (1 << 64) - 1),
        (-(1 << 63), 1 << 63),
        (bytes(range(32)), 0x18191A1B1C1D1E1F),
        (bytes(range(16)), 0x08090A0B0C0D0E0F),
        (b"\1\2", 0x0102),
    ],
)
def test_hashes_of_every_kind(raw: int | bytes, reduced: int) -> None:
    """Integers of any width and sign, and digests, name the block that the unsigned 64 bits vLLM would publish name."""
    event = stored(block_hashes=[raw, 8], parent_block_hash=raw)

    assert event.hashes == [engine_hash(reduced), engine_hash(8)]
    assert event.parent == engine_hash(reduced)


def test_no_engine_chooses_where_its_blocks_go() -> None:
    """Hashes alike in their low, their high or all but a few bits spread over a table as evenly as any others."""
    for hashes in ([i << 16 for i in range(2048)], list(range(2048)), [i << 53 for i in range(2048)]):
        shards = Counter(block & 31 for block in stored(block_hashes=hashes, token_ids=TOKENS * 1024).hashes)
        assert len(shards) == 32
        assert max(shards.values()) < 2 * 2048 / 32


@pytest.mark.parametrize("parent", [None, 0])
def test_absent_parent(parent: int | None) -> None:
    """A chain begins at token 0 where the parent is nil, or 0 as some publishers write it."""
    assert stored(parent_block_hash=parent).parent is None


@pytest.mark.parametrize(
    ("fields", "lora"),
    [
        ({"lora_name": "adapter-a", "lora_id": 1}, "adapter-a"),
        ({"lora_name": "", "lora_id": 0}, None),
        ({"lora_id": "adapter-a"}, "adapter-a"),
    ],
)
def test_lora_name(fields: dict[str, object], lora: str | None) -> None:
    """The adapter is known by name, wherever the engine puts it; the per-engine number is not looked at."""
    assert stored(**fields).lora == lora


def test_extras_say_what_a_bare_string_means() -> None:
    """The LoRA name is consumed; on the block at token 0 the next string is the salt, elsewhere an old multimodal id."""
    event = stored(parent_block_hash=None, lora_name="a", extra_keys=[["a", ["image", -3], "salt", b"embeds"], ["a", "old-image"]])

    assert event.extras == [(("mm", "image", -3), ("salt", "salt"), ("embeds", b"embeds")), (("mm", "old-image"),)]


def test_a_block_without_extras_beside_one_with() -> None:
    """Nil entries are blocks of plain text."""
    assert stored(parent_block_hash=None, extra_keys=[["salt"], None]).extras == [(("salt", "salt"),), ()]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (STORED | {"block_hashes": "abc"}, "block_hashes"),
        (STORED | {"block_hashes": [1.5, 2]}, "block_hashes"),
        (STORED | {"block_hashes": [b"", 2]}, "block_hashes"),
        (STORED | {"parent_block_hash": "x"}, "parent_block_hash"),
        (STORED | {"token_ids": None}, "token_ids"),
        (STORED | {"token_ids": [1, "x"]}, "token_ids"),
        (STORED | {"token_ids": [1, -2]}, "token_ids"),
        (STORED | {"token_ids": [1 << 32]}, "token_ids"),
        (STORED | {"block_size": -1}, "block_size"),
        (STORED | {"block_size": "16"}, "block_size"),
        (STORED | {"medium": 3}, "medium"),
        (STORED | {"group_idx": "a"}, "group_idx"),
        (STORED | {"extra_keys": [None]}, "extra_keys"),
        (STORED | {"extra_keys": [[1.5], None]}, "extra_keys"),
        (STORED | {"extra_keys": [7, None]}, "extra_keys"),
        (STORED | {"lora_id": 3, "lora_name": None}, "lora_without_name"),
        (["BlockRemoved"], "block_hashes"),
        (["BlockStored", [1]], "block_size"),
        ({"block_hashes": [1]}, "event"),
        ([], "event"),
        ([[1]], "event"),
        (None, "event"),
    ],
)
def test_a_bad_event_costs_itself_only(event: object, reason: str) -> None:
    """The good events of the batch count, and the bad one is named by a reason."""
    batch = decode(encode(["BlockRemoved", [1]], event, ["AllBlocksCleared"]))

    assert list(batch.events) == [BlockRemoved(named(1)), AllCleared()]
    assert batch.errors == (reason,)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\x81\x01\x01\x01",
        b"\xd9\x02\xff\xff",
        msgspec.msgpack.encode(7),
        msgspec.msgpack.encode([1.5]),
        msgspec.msgpack.encode([1.5, {"type": "BlockStored"}]),
    ],
    ids="empty text reserved array-bomb map-bomb nesting-bomb odd-key not-utf8 number no-events events-no-list".split(),
)
def test_an_undecodable_payload_is_one_error(payload: bytes) -> None:
    """Garbage gives an empty batch with the reason, whatever garbage it is."""
    batch = decode(payload)

    assert (list(batch.events), batch.errors) == ([], ("payload",))


@pytest.mark.parametrize("ts", [None, "now", float("nan"), float("inf")])
def test_a_batch_without_a_usable_time(ts: object) -> None:
    """The events count although their time is unknown."""
    batch = decode(encode(["AllBlocksCleared"], ts=ts))

    assert batch.ts is None
    assert list(batch.events) == [AllCleared()]


@given(st.binary(max_size=200))
def test_decoding_never_raises_on_bytes(payload: bytes) -> None:
    """Any bytes at all give a batch."""
    assert isinstance(decode(payload), Batch)


@given(
    st.recursive(
        st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=3) | st.binary(max_size=9) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*STORED, "extra_keys", "group_idx"]), inner, max_size=5)
        ),
        max_leaves=20,
    ),
    st.sampled_from(["BlockStored", "BlockRemoved"]),
)
def test_decoding_never_raises_on_odd_fields(value: object, tag: str) -> None:
    """Any value in any field gives an event or a reason."""
    for event in (
        [tag, value, value, value, value],
        {"type": tag, "block_hashes": [1], "block_size": 1, "token_ids": [1], "medium": value},
    ):
        batch = decode(encode(event))

        assert len(batch.events) + len(batch.errors) == 1


@pytest.mark.parametrize(
    ("raw", "medium"),
    [
        ("GPU", "gpu"),
        ("CPU", "cpu"),
        ("cpu", "cpu"),
        ("CPU_PINNED", "cpu"),
        ("STORAGE", "storage"),
        ("DISK", "storage"),
        ("Lmcache", "lmcache"),
    ],
)
def test_mediums_have_one_name_each(raw: str, medium: str) -> None:
    """However an engine writes it: vLLM, stores beside it, SGLang."""
    batch = decode(encode(STORED | {"medium": raw}, ["BlockRemoved", [1], raw]))

    assert [event.medium for event in batch.events if not isinstance(event, AllCleared)] == [medium, medium]


@pytest.mark.parametrize("event", [STORED, {"type": "BlockRemoved", "block_hashes": [1], "medium": "CPU"}])
def test_what_a_publisher_says_of_other_places_is_passed_over(event: dict[str, object]) -> None:
    """A block in a store elsewhere is not held by the endpoint that announces it."""
    assert decode(encode(event | {"locality": "REMOTE"})) == Batch(1.5, 0, [])
    assert len(decode(encode(event | {"locality": "LOCAL", "ownership": "kvcr"})).events) == 1


@pytest.mark.parametrize("layout", [[None], [None, "CPU_PINNED"], [None, "CPU_PINNED", None, None]], ids=["shortest", "medium", "all"])
def test_sglang_events(layout: list[object]) -> None:
    """Arrays of four fields and more, negative hashes, and a map at the end that may name the salt."""
    for parent, salted in ((None, True), (-3, False)):
        said = ["BlockStored", [-7, 8], parent, TOKENS, 2, *layout, {"cache_salt": "tenant", "session_id": "s"}]
        (event,) = decode(encode(said, rank=3)).events

        assert isinstance(event, BlockStored)
        assert (event.hashes, event.tokens) == (named((1 << 64) - 7, 8), pack_tokens(TOKENS))
        assert event.medium == ("cpu" if len(layout) > 1 else "gpu")
        assert event.extras == ([(("salt", "tenant"),), ()] if salted else None)


def test_a_long_batch_is_cut_between_events() -> None:
    """Parts hold about as many blocks as asked; nothing is lost or reordered, and errors are told once."""
    batch = decode(encode(*(["BlockRemoved", [i, i]] for i in range(10)), "bad"))
    parts = list(slices(batch, 4))

    assert [len(part.events) for part in parts] == [2, 2, 2, 2, 2]
    assert [event for part in parts for event in part.events] == list(batch.events)
    assert [part.errors for part in parts] == [("event",), (), (), (), ()]


def test_events_without_blocks_take_time_too() -> None:
    """A batch of nothing but empty spans, or clears, is cut all the same."""
    empty = Batch(1.0, events=[BlockRemoved([])] * 100)
    clears = Batch(1.0, events=[AllCleared()] * 100)

    assert [len(part.events) for part in slices(empty, 32)] == [32, 32, 32, 4]
    assert [len(part.events) for part in slices(clears, 32)] == [2] * 50


def test_a_long_event_is_cut_between_blocks() -> None:
    """Each part goes on where the one before ended, so that applying them one after the other gives the same chain."""
    event = stored(block_hashes=[7, 8, 9], token_ids=[1, 2, 3, 4, 5, 6], extra_keys=[["a"], None, ["b"]], parent_block_hash=None)
    parts = [part.events[0] for part in slices(Batch(1.0, events=[event]), 2)]

    assert [(part.hashes, part.parent, part.tokens, part.extras) for part in parts if isinstance(part, BlockStored)] == [
        (named(7, 8), None, pack_tokens([1, 2, 3, 4]), [(("salt", "a"),), ()]),
        (named(9), engine_hash(8), pack_tokens([5, 6]), [(("mm", "b"),)]),
    ]
    (removed, rest) = [part.events[0] for part in slices(decode(encode(["BlockRemoved", [1, 2, 3]])), 2)]
    assert (removed, rest) == (BlockRemoved(named(1, 2)), BlockRemoved(named(3)))


def test_a_batch_of_nothing_but_errors_is_not_read_to_its_end() -> None:
    """What a liar costs is bounded."""
    assert len(decode(encode(*[None] * 10_000)).errors) == MAX_ERRORS
