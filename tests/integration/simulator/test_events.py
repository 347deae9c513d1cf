"""KV events over real sockets: live and replayed."""

import asyncio
import itertools
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from epp.simulator.config import PodEndpoint
from epp.simulator.fleet import Fleet

pytestmark = pytest.mark.asyncio(loop_scope="package")

END = b"\xff" * 8


async def replay(endpoint: PodEndpoint, start: int) -> list[list[bytes]]:
    """The frames of every reply to a replay request, the end marker included."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.set(zmq.LINGER, 0)
        dealer.connect(f"tcp://{endpoint.host}:{endpoint.replay_port}")
        await dealer.send_multipart([b"", start.to_bytes(8, "big")])
        replies: list[list[bytes]] = []
        async with asyncio.timeout(20):
            while not replies or replies[-1][2] != END:
                replies.append(await dealer.recv_multipart())
        return replies


async def ask(client: aiohttp.ClientSession, endpoint: PodEndpoint, first: int) -> None:
    """A prompt of two full blocks that no other test uses."""
    body = {"model": "tiny", "prompt": list(range(first, first + 33)), "max_tokens": 1}
    async with client.post(f"{endpoint.url}/v1/completions", json=body) as answer:
        assert answer.status == 200


async def test_live_events_are_numbered_and_named(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """A subscriber gets topic, consecutive sequence numbers and the stored tokens."""
    endpoint = fleet.endpoints[0]
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.connect(f"tcp://{endpoint.host}:{endpoint.events_port}")
        subscriber.subscribe(b"")
        messages: list[list[bytes]] = []
        async with asyncio.timeout(20):
            # The subscription takes effect at some point after connect.
            for first in itertools.count(1000, 100):
                await ask(client, endpoint, first)
                while await subscriber.poll(20):
                    messages.append(await subscriber.recv_multipart())
                if len(messages) >= 3:
                    break
    assert {message[0] for message in messages} == {f"kv@{endpoint.host}:{endpoint.port}@tiny".encode()}
    seqs = [int.from_bytes(message[1], "big") for message in messages]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    _, (event,), rank = msgspec.msgpack.decode(messages[-1][2])
    assert rank == 0
    assert event["type"] == "BlockStored"
    assert event["token_ids"] == list(range(first, first + 32))
    assert event["block_size"] == 16
    assert len(event["block_hashes"]) == 2


async def test_replay_from_the_beginning_and_from_the_middle(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """Every batch since the number asked for, in order, in four frames, then the end marker."""
    endpoint = fleet.endpoints[0]
    await ask(client, endpoint, 500_00)
    await ask(client, endpoint, 600_00)
    everything = await replay(endpoint, 0)
    assert everything.pop() == [b"", b"", END, b""]
    assert {len(frames) for frames in everything} == {4}
    seqs = [int.from_bytes(frames[2], "big") for frames in everything]
    assert seqs == list(range(len(seqs)))
    last: Any = msgspec.msgpack.decode(everything[-1][3])
    assert last[1][0]["token_ids"][0] == 600_00
    rest = await replay(endpoint, len(seqs) - 1)
    assert [frames[2] for frames in rest] == [everything[-1][2], END]


async def test_nothing_left_to_replay(fleet: Fleet) -> None:
    """A picker that has everything gets the end marker alone."""
    assert await replay(fleet.endpoints[1], 1 << 40) == [[b"", b"", END, b""]]
