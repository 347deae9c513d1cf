"""The engine model and its encoder beside a real vLLM 0.32: same requests, same cache, same bytes."""

import hashlib
import struct
from typing import Any

import pytest

from epp.simulator.engine import Engine, EngineConfig, Lora, Request
from epp.simulator.events import BlockRemoved, BlockStored, KvEvent, encode_batch
from epp.simulator.hashing import BlockHasher, ExternalHash, external
from tests.unit.simulator import recording

BLOCK_SIZE = 32
VLLM_DEFAULT_BUDGET = 2048


def canonical_cbor(value: object) -> bytes:
    """As much of canonical CBOR as a block's hash input needs."""

    def head(major: int, number: int) -> bytes:
        for code, size, form in ((24, 1 << 8, ">B"), (25, 1 << 16, ">H"), (26, 1 << 32, ">I")):
            if number < 24:
                return bytes([major << 5 | number])
            if number < size:
                return bytes([major << 5 | code]) + struct.pack(form, number)
        raise ValueError(number)

    match value:
        case None:
            return b"\xf6"
        case int():
            return head(0, value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case tuple():
            return head(4, len(value)) + b"".join(map(canonical_cbor, value))
        case _:
            raise TypeError(value)


def sha256_cbor(value: object) -> bytes:
    """vLLM's second algorithm, with which the eviction recording was made."""
    return hashlib.sha256(canonical_cbor(value)).digest()


def as_event(fields: dict[str, Any]) -> KvEvent:
    """A recorded event as the simulator's record."""
    if fields["type"] == "BlockRemoved":
        return BlockRemoved(fields["block_hashes"][0])
    constant = ("type", "medium", "group_idx", "kv_cache_spec_kind")
    return BlockStored(**{key: value for key, value in fields.items() if key not in constant})


def run_alone(engine: Engine, request: Request) -> list[list[KvEvent]]:
    """Let one request run to its end; the events of each step that had some."""
    engine.add(request)
    batches = []
    while engine.start_step():
        if events := engine.finish_step().events:
            batches.append(events)
    return batches


def stores(name: str) -> list[BlockStored]:
    """All recorded stores, up to the reset at the end of the recording."""
    events = [event for batch in recording.batches_before_reset(name) for event in map(as_event, batch.events)]
    return [event for event in events if isinstance(event, BlockStored)]


def answer_of(prompt: list[int], length: int, recorded: list[BlockStored]) -> list[int]:
    """The answer vLLM gave, as far as blocks that it filled tell; where none does, its tokens make no difference."""
    tail = prompt[len(prompt) // BLOCK_SIZE * BLOCK_SIZE :]
    said: list[int] = []
    last: ExternalHash | None = None
    for event in recorded:
        is_next = last is not None and event.parent_block_hash == last
        if is_next or (not said and len(event.block_hashes) == 1 and event.token_ids[: len(tail)] == tail):
            said += event.token_ids[0 if is_next else len(tail) :]
            last = event.block_hashes[-1]
    return (said + [0] * length)[:length]


@pytest.mark.parametrize("name", ["requests", "eviction"])
def test_bytes_of_events(name: str) -> None:
    """Every recorded batch of stores and removals, read and encoded again, is the same bytes."""
    recorded = recording.batches_before_reset(name)
    assert len(recorded) >= 20
    for batch in recorded:
        assert encode_batch(batch.timestamp, [as_event(event) for event in batch.events]) == batch.payload


def test_requests_fill_the_cache_as_vllm_did() -> None:
    """The recorded prompts, one after the other, store the same hashes with the same parents, tokens and extra keys."""
    config = EngineConfig(block_size=BLOCK_SIZE, num_blocks=4096, max_num_batched_tokens=VLLM_DEFAULT_BUDGET)
    engine = Engine(config, BlockHasher("0"))
    recorded = stores("requests")
    seen: list[KvEvent] = []
    for request in recording.requests():
        body, prompts = request["body"], recording.rendered(request)
        lora = Lora(1, "adapter-a", "/adapters/adapter-a") if body["model"] == "adapter-a" else None
        for prompt in prompts:
            answer = answer_of(prompt, recording.answer_length(request), recorded)
            for events in run_alone(engine, Request(request["name"], prompt, answer, lora, body.get("cache_salt"))):
                seen += events
    assert len(seen) == len(recorded)
    for ours, theirs in zip(seen, recorded, strict=True):
        assert isinstance(ours, BlockStored)
        if theirs.lora_name is None:
            assert ours == theirs
        else:
            # An adapter's hashes hold its path on vLLM's disk.
            assert (ours.token_ids, ours.extra_keys, ours.lora_name) == (theirs.token_ids, theirs.extra_keys, theirs.lora_name)


def test_a_full_cache_evicts_as_vllm_did() -> None:
    """40 requests through 64 blocks: every store and every removal, in vLLM's order and in vLLM's batches."""
    recorded = [list(map(as_event, batch.events)) for batch in recording.batches_before_reset("eviction")]
    config = EngineConfig(block_size=BLOCK_SIZE, num_blocks=64, max_num_batched_tokens=VLLM_DEFAULT_BUDGET)
    engine = Engine(config, BlockHasher("0", sha256_cbor))
    chain = stores("eviction")
    seen: list[list[KvEvent]] = []
    # Each request stored 12 blocks of its prompt of 400 tokens, then one more with the first 16 of its 40 answered tokens.
    for number, (prompt, decoded) in enumerate(zip(chain[::2], chain[1::2], strict=True)):
        tokens = prompt.token_ids + decoded.token_ids
        seen += run_alone(engine, Request(str(number), tokens[:400], tokens[400:] + [0] * 24))
    assert number == 39
    assert seen == recorded


def test_stand_in_for_cbor() -> None:
    """The eviction recording is compared with the right algorithm: spec/kv.md 2 has vectors for it too."""
    hasher = BlockHasher("0", sha256_cbor)
    one = hasher.digest(None, [1, 2, 3, 4], None)
    two = hasher.digest(one, [5, 6, 7, 8], (("cache_salt", "S"),))
    assert (external(one), external(two)) == (2164874634404590027, 2406460593221068380)
