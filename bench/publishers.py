"""Stand-ins for the KV events of a fleet, in a process of their own: `python -m bench.publishers --count=100`, started by `events`.

Prints its ports as one line of JSON; then, for each line `SECONDS PER_SECOND` on standard input, all pods publish at the same instant so
often a second for so long, and it prints how many blocks were stored by all of them together. Every batch is made beforehand: it
stores a prompt of 256 tokens in 16 blocks and removes the one that came half a round before. One in four prompts is everybody's.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Final

import msgspec
import zmq

BLOCK_SIZE: Final = 16
BLOCKS: Final = 16
"""In a batch."""
ROUND: Final = 64
"""Batches until a pod begins again."""

_encode: Final = msgspec.msgpack.Encoder().encode


def batches(pod: int) -> list[bytes]:
    """The round of one pod."""
    shared, own = random.Random(1), random.Random(pod + 2)
    prompts = [[(own if i % 4 else shared).randrange(130_000) for _ in range(BLOCKS * BLOCK_SIZE)] for i in range(ROUND)]
    hashes = [[pod << 32 | i * BLOCKS + block for block in range(BLOCKS)] for i in range(ROUND)]
    return [_encode([0.0, [_removed(hashes[i - ROUND // 2]), _stored(hashes[i], prompts[i])], 0]) for i in range(ROUND)]


def _stored(hashes: list[int], tokens: list[int]) -> dict[str, object]:
    event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "token_ids": tokens, "block_size": BLOCK_SIZE}
    return {**event, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [None] * len(hashes), "group_idx": 0}


def _removed(hashes: list[int]) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", "group_idx": 0}


class Fleet:
    """So many PUB sockets."""

    def __init__(self, count: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = [context.socket(zmq.PUB) for _ in range(count)]
        self.ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in self._sockets]
        self._messages: list[Iterator[bytes]] = [itertools.cycle(batches(pod)) for pod in range(count)]
        self._number = 0

    def publish(self, seconds: float, per_second: float) -> int:
        """Returns the blocks stored."""
        before, began = self._number, time.monotonic()
        for tick in itertools.count():
            due = began + tick / per_second
            if due >= began + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            number = self._number.to_bytes(8, "big")
            for socket, messages in zip(self._sockets, self._messages, strict=True):
                socket.send_multipart((b"", number, next(messages)), zmq.NOBLOCK)
            self._number += 1
        return (self._number - before) * BLOCKS * len(self._sockets)


def main() -> None:
    """Serve standard input to its end."""
    parser = argparse.ArgumentParser(description="stand-ins for the KV events of a fleet, for make bench")
    parser.add_argument("--count", type=int, required=True)
    fleet = Fleet(parser.parse_args().count)
    _say(fleet.ports)
    for line in sys.stdin:
        seconds, per_second = map(float, line.split())
        _say(fleet.publish(seconds, per_second))


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
