"""A publisher as vLLM's: PUB and ROUTER, one batch a step, a ring for replays (spec/kv.md 1.2-1.5); and a rig that listens to some.

It encodes events by itself, so that a mistake of our decoder cannot cancel out. Faults are made on purpose and by name.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import zmq
import zmq.asyncio

from epp import names
from epp.domain import Endpoint, EndpointId, TokenizedRequest, TokenState
from epp.kvcache.index import PrefixIndex
from epp.kvcache.predictions import Predictions
from epp.reporter import Reporter
from epp.sources.kv_events import KvEventSource
from epp.sources.kv_messages import Timing
from epp.sources.kv_ports import EventPorts

BLOCK_SIZE = 4
END_OF_REPLAY = b"\xff" * 8

QUICK = Timing(replay_idle_s=0.5, connect_s=1.0, reconnect_s=0.02, reconnect_max_s=0.1, flood_pause_s=0.5)

HIGH_WATER_MARK = 100_000
"""vLLM's default."""

_hashes = itertools.count(1 << 40)


class Publisher:
    """One engine process; a restart is a new one on the same ports."""

    def __init__(
        self, *, port: int = 0, replay_port: int = 0, topic: bytes = b"", ring: int = 10_000, connect: str = "", rank: int = 0
    ) -> None:
        """`connect`: publish to this address of a picker that binds. `rank`: of the engine, as its batches say."""
        self._context = zmq.asyncio.Context()
        self._pub = self._connect(connect) if connect else self._bind(zmq.XPUB, port)
        self._router = self._bind(zmq.ROUTER, replay_port)
        self._topic = topic
        self._rank = rank
        self._seq = itertools.count()
        self._ring: deque[tuple[int, bytes]] = deque(maxlen=ring)
        self._chains: dict[tuple[int, ...], int] = {}
        """Hash of each block published, by all tokens up to its end."""
        self.drop_replies: set[int] = set()
        """Batches an overrun ROUTER leaves out of its next answer."""
        self.old_replies = False
        """Reply without the topic, as before vLLM 0.26."""
        self.silent = False
        """Never answer a replay."""
        self.replays: list[int] = []
        """Start of each replay asked for."""
        self.port = self._port_of(self._pub)
        self.replay_port = self._port_of(self._router)
        self._server = asyncio.create_task(self._serve())

    async def subscribed(self) -> None:
        """Wait until somebody listens: what is published before is not heard."""
        async with asyncio.timeout(20):
            while await self._pub.recv() != b"\x01":
                pass

    async def store(self, tokens: Sequence[int], *, lost: bool = False) -> None:
        """A prompt is computed: one batch with the blocks that are not cached yet."""
        ends = [end for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE) if tuple(tokens[:end]) not in self._chains]
        hashes = [next(_hashes) for _ in ends]
        start = ends[0] - BLOCK_SIZE
        event: dict[str, object] = {
            "type": "BlockStored",
            "block_hashes": hashes,
            "parent_block_hash": self._chains.get(tuple(tokens[:start])),
            "token_ids": list(tokens[start : ends[-1]]),
            "block_size": BLOCK_SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": [None] * len(hashes),
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        self._chains.update((tuple(tokens[:end]), block) for end, block in zip(ends, hashes, strict=True))
        await self.publish([event], lost=lost)

    async def evict(self, tokens: Sequence[int], *, lost: bool = False) -> None:
        """The last block of the prompt is reused."""
        await self.publish([{"type": "BlockRemoved", "block_hashes": [self._chains.pop(tuple(tokens))], "medium": "GPU"}], lost=lost)

    async def reset(self) -> None:
        """The prefix cache is reset."""
        self._chains.clear()
        await self.publish([{"type": "AllBlocksCleared"}])

    async def publish(self, events: list[dict[str, object]], *, lost: bool = False) -> None:
        """One engine step; `lost`: no subscriber hears of it."""
        payload = msgspec.msgpack.encode([time.time(), events, self._rank])
        seq = next(self._seq)
        if not lost:
            await self.send([self._topic, seq.to_bytes(8, "big"), payload])
        self._ring.append((seq, payload))

    async def send(self, frames: list[bytes]) -> None:
        """Any frames at all."""
        await self._pub.send_multipart(frames)

    async def stop(self) -> None:
        """The process is gone, if it was not already."""
        if self._pub.closed:
            return
        self._server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._server
        self._context.destroy(linger=0)  # returns when libzmq has closed the ports

    async def _serve(self) -> None:
        while True:
            frames = await self._router.recv_multipart()
            if len(frames) != 3:
                continue
            client, _, start = frames
            self.replays.append(int.from_bytes(start, "big"))
            if self.silent:
                continue
            drop, self.drop_replies = self.drop_replies, set()
            for seq, payload in list(self._ring):
                if seq >= self.replays[-1] and seq not in drop:
                    await self._router.send_multipart([client, *self._head(self._topic), seq.to_bytes(8, "big"), payload])
            await self._router.send_multipart([client, *self._head(b""), END_OF_REPLAY, b""])

    def _head(self, topic: bytes) -> list[bytes]:
        return [b""] if self.old_replies else [b"", topic]

    def _bind(self, kind: int, port: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        if kind == zmq.XPUB:
            socket.sndhwm = HIGH_WATER_MARK
        socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        return socket

    def _connect(self, url: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.XPUB)
        socket.sndhwm = HIGH_WATER_MARK
        socket.connect(url)
        return socket

    @staticmethod
    def _port_of(socket: zmq.asyncio.Socket) -> int:
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2].rstrip("/") or 0)


class Notes(Reporter):
    """Writes down what the source reports."""

    def __init__(self) -> None:
        self.states: dict[EndpointId, list[str]] = {}
        self.gaps: list[tuple[EndpointId, int]] = []
        self.errors: list[tuple[EndpointId, str]] = []

    def kv_stream_state(self, endpoint: EndpointId, rank: int, state: str) -> None:
        self.states.setdefault(endpoint, []).append(state)

    def kv_gap(self, endpoint: EndpointId, missing: int) -> None:
        self.gaps.append((endpoint, missing))

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        self.errors.append((endpoint, reason))


class Rig:
    """An index fed by a source that listens to some publishers."""

    def __init__(
        self,
        *,
        topic_filter: str = "kv@",
        max_sockets: int = 1024,
        bind: str = "",
        discover: bool = True,
        timing: Timing = QUICK,
        notes: Notes | None = None,
        ports: EventPorts | None = None,
        lost: Callable[[EndpointId], None] = lambda _: None,
        predictions: Predictions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.notes = notes or Notes()
        self.index = PrefixIndex(self.notes, default_block_size=16, predictions=predictions)
        self.source = KvEventSource(
            self.index,
            self.notes,
            topic_filter=topic_filter,
            ports=ports or EventPorts(None, None, ask=None),
            clock=clock,
            timing=timing,
            max_sockets=max_sockets,
            bind=bind,
            discover=discover,
            lost=lost,
        )
        self.source.start(asyncio.get_running_loop())

    def hit_tokens(self, name: str, tokens: Sequence[int]) -> int:
        """What the endpoint would hit of a prompt that goes on after these tokens."""
        request = TokenizedRequest(TokenState.EXACT, [[*tokens, 0]])
        return self.index.match(request, [EndpointId(name)], now=0.0).tokens[0]

    def state(self, name: str) -> str | None:
        """The last state reported."""
        return self.notes.states.get(EndpointId(name), [None])[-1]

    async def settled(self) -> None:
        """Start-up is over."""
        async with asyncio.timeout(20):
            await self.source.settled.wait()


def endpoint(name: str, publisher: Publisher, *, replay: bool = True) -> Endpoint:
    """As the endpoints file would name it."""
    labels = {names.KV_EVENTS_PORT_LABEL: str(publisher.port)}
    if replay:
        labels[names.KV_REPLAY_PORT_LABEL] = str(publisher.replay_port)
    return Endpoint(EndpointId(name), "127.0.0.1", 8000, labels)
