"""The prefix index alone: events applied, prompts looked up, endpoints that leave, memory. On the CPU's clock, in this process.

Events are what engines send, msgpack and all, 8 blocks of 16 tokens each. A lookup's tokens are held by all endpoints, which is its
dearest case but one: that a part of them is in another medium everywhere. A callback is a slice as the event source or the
housekeeping runs it on the event loop. Memory is what a process of its own grows by, since not all of it is Python's:
`python -m bench.index ENDPOINTS TIMES` prints bytes a block.
"""

import asyncio
import gc
import itertools
import os
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from bench import procfs
from bench.records import BLOCK_ROWS, Spread, Step
from epp import allocator
from epp.domain import EndpointId, TokenizedRequest, TokenState
from epp.kvcache.events import decode
from epp.kvcache.index import PrefixIndex
from epp.reporter import Reporter

BLOCK_SIZE: Final = 16
BLOCKS_AN_EVENT: Final = 8
BATCHES: Final = 5
ENDPOINT_BLOCKS: Final = 100_000
# Just after the tables have grown, where they are least full.
MEMORY_BLOCKS: Final = 100_000
CHANGES: Final = 3
SWEEP: Final = 500

_pack = msgspec.msgpack.Encoder().encode


def measure(*, quick: bool) -> list[Step]:
    """The rows of this module."""
    steps = [Step("a block of an event decoded and applied", _applying(2_000 if quick else 10_000))]
    for tokens, endpoints in itertools.product((8_000, 100_000), (8, 256)):
        steps.append(Step(f"a prompt of {tokens:,} tokens looked up, {endpoints} endpoints", _looking_up(tokens, endpoints, quick=quick)))
    steps.append(Step("the same, its second half in CPU memory", _looking_up(100_000, 256, quick=quick, offloaded=True)))
    steps.append(Step("longest slice of events, table growing to 200,000 blocks", Spread(tuple(_growing(200_000) for _ in range(3)))))
    steps.append(Step(f"longest slice, an endpoint of {ENDPOINT_BLOCKS:,} blocks leaves", Spread(tuple(_leaving() for _ in range(3)))))
    return steps


async def bytes_a_block() -> dict[str, float]:
    """Memory a block an endpoint holds: alone, together with seven others, and alone in a cache that has been full for long."""
    return {row: await _in_a_process(*case) for row, case in zip(BLOCK_ROWS, ((1, 0), (8, 0), (1, CHANGES)), strict=True)}


async def _in_a_process(endpoints: int, changes: int) -> float:
    command = (sys.executable, "-m", "bench.index", str(endpoints), str(changes))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return float(output)


def _hashes(engine: int) -> Iterator[list[int]]:
    """What an engine calls the blocks of one event after the other."""
    names = random.Random(engine)
    while True:
        yield [names.getrandbits(64) for _ in range(BLOCKS_AN_EVENT)]


def _payloads(blocks: int, seed: int, engine: int = 0) -> Iterator[bytes]:
    """Events of prompts of 64 blocks; equal seeds say equal tokens, and engines have hashes of their own."""
    rng = random.Random(seed)
    names = _hashes(engine)
    for start in range(0, blocks, BLOCKS_AN_EVENT):
        if start % 64 == 0:
            parent = None
        hashes = next(names)
        event = {
            "type": "BlockStored",
            "block_hashes": hashes,
            "parent_block_hash": parent,
            "token_ids": [rng.randrange(130_000) for _ in range(BLOCKS_AN_EVENT * BLOCK_SIZE)],
            "block_size": BLOCK_SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }
        parent = hashes[-1]
        yield _pack([0.0, [event], 0])


def _index() -> PrefixIndex:
    return PrefixIndex(Reporter(), default_block_size=BLOCK_SIZE)


def _applying(blocks: int) -> Spread:
    values = []
    for batch in range(BATCHES):
        payloads, index = list(_payloads(blocks, batch)), _index()
        before = time.process_time()
        for payload in payloads:
            index.apply(EndpointId("a"), 0, decode(payload))
        values.append((time.process_time() - before) / blocks)
    return Spread(tuple(values))


def _looking_up(tokens: int, endpoints: int, *, quick: bool, offloaded: bool = False) -> Spread:
    index, pods = _index(), [EndpointId(f"pod-{i}") for i in range(endpoints)]
    prompt = array("I", [i % 129_000 for i in range(tokens)])
    whole = tokens // BLOCK_SIZE
    for engine, pod in enumerate(pods):
        hashes = list(range(engine << 40, (engine << 40) + whole))
        event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "block_size": BLOCK_SIZE, "medium": "GPU"}
        index.apply(pod, 0, decode(_pack([0.0, [{**event, "token_ids": list(prompt[: whole * BLOCK_SIZE])}], 0])))
        if offloaded:
            copied = {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": None,
                "block_size": 0,
                "medium": "CPU",
                "token_ids": [],
            }
            evicted = {"type": "BlockRemoved", "block_hashes": hashes[whole // 2 :], "medium": "GPU"}
            index.apply(pod, 0, decode(_pack([0.0, [copied, evicted], 0])))
    request = TokenizedRequest(TokenState.EXACT, [prompt])
    assert index.match(request, pods, 0.0).blocks == [whole] * endpoints
    return _timed(lambda: index.match(request, pods, 0.0), 10 if quick else 40)


def _timed(operation: Callable[[], object], calls: int) -> Spread:
    values = []
    for _ in range(BATCHES):
        before = time.process_time()
        for _ in range(calls):
            operation()
        values.append((time.process_time() - before) / calls)
    return Spread(tuple(values))


def _growing(blocks: int) -> float:
    """Seconds of the longest slice of 8 events."""
    index, payloads = _index(), _payloads(blocks, 1)
    slices: Sequence[object] = ()
    longest = 0.0
    gc.disable()  # the picker's looks seldom, and not at what is held for long
    try:
        while slices := [decode(payload) for payload in itertools.islice(payloads, 8)]:
            before = time.thread_time()
            for batch in slices:
                index.apply(EndpointId("a"), 0, batch)
            longest = max(longest, time.thread_time() - before)
    finally:
        gc.enable()
    return longest


def _leaving() -> float:
    index, pod = _index(), EndpointId("a")
    for payload in _payloads(ENDPOINT_BLOCKS, 1):
        index.apply(pod, 0, decode(payload))
    before = time.thread_time()
    index.remove(pod)
    longest = time.thread_time() - before
    more = True
    while more:
        before = time.thread_time()
        more = index.sweep(0.0, SWEEP)
        longest = max(longest, time.thread_time() - before)
    return longest


def _memory(endpoints: int, changes: int) -> float:
    """Bytes a block an endpoint holds, after each of them has made way for another so many times, in order of age."""
    allocator.share_one_arena()
    _index().apply(EndpointId("a"), 0, decode(next(_payloads(1, 1))))  # what is made once
    before = _resident()
    index = _filled(endpoints, changes)
    grown = _resident() - before
    held = sum(index.blocks(EndpointId(f"pod-{engine}")) for engine in range(endpoints))
    assert held == MEMORY_BLOCKS * endpoints
    return grown / held


def _filled(endpoints: int, changes: int) -> PrefixIndex:
    """Housekeeping comes by whenever a hundredth of what an endpoint holds has changed."""
    index = _index()
    for engine in range(endpoints):
        pod, payloads = EndpointId(f"pod-{engine}"), _payloads(MEMORY_BLOCKS * (1 + changes), 1, engine)
        for payload in itertools.islice(payloads, MEMORY_BLOCKS // BLOCKS_AN_EVENT):
            index.apply(pod, 0, decode(payload))
        for number, (payload, oldest) in enumerate(zip(payloads, _hashes(engine), strict=False)):
            removed = {"type": "BlockRemoved", "block_hashes": oldest, "medium": "GPU"}
            index.apply(pod, 0, decode(_pack([0.0, [removed], 0])))
            index.apply(pod, 0, decode(payload))
            if number % (MEMORY_BLOCKS // BLOCKS_AN_EVENT // 100) == 0:
                index.sweep(0.0)
    return index


def _resident() -> int:
    gc.collect()
    allocator.give_back()
    return procfs.resident_bytes(os.getpid())


if __name__ == "__main__":
    sys.stdout.write(str(_memory(int(sys.argv[1]), int(sys.argv[2]))))
