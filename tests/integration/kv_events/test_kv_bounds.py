"""What one engine may send, and what of it may wait: bounds that cost its own stream only."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
import zmq

from epp.domain import EndpointId, EngineHash
from epp.kvcache.events import AllCleared, Batch, BlockStored
from epp.kvcache.sequence import Apply
from epp.sources import kv_replay
from epp.sources.kv_inbox import Inbox
from epp.sources.kv_messages import MAX_MESSAGE_BYTES, READ_AHEAD, Delivery, Failed, StreamAddress, Timing
from epp.sources.kv_stream import Stream
from epp.sources.kv_streams import MAX_REPLAYS, StreamThread
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Publisher, Rig, endpoint

Publish = Callable[..., Publisher]
PROMPT = list(range(1, 17))
OTHER = list(range(101, 117))


def stream_thread() -> StreamThread:
    """One that is nobody's."""
    thread = StreamThread(
        deliver=lambda *_: None,
        ended=lambda _: None,
        behind=lambda: False,
        has_enough_of=lambda _: False,
        forget=lambda _: None,
        accepts=lambda _: True,
        clock=lambda: 0.0,
        timing=Timing(),
        max_sockets=64,
        bind="tcp://127.0.0.1:*",
    )
    thread.start()
    return thread


def test_every_socket_has_a_finite_queue_and_a_largest_message() -> None:
    """In libzmq a few messages of at most 2 MiB, while a replay arrives 10,000: what comes beyond waits at the sender; what that drops shows as a gap."""
    thread = stream_thread()
    sockets = [thread.socket(zmq.SUB, READ_AHEAD), thread.socket(zmq.DEALER, kv_replay.HIGH_WATER_MARK)]
    assert [(socket.rcvhwm, socket.maxmsgsize) for socket in sockets] == [(4, 2 << 20), (10_000, 2 << 20)]
    for socket in sockets:
        socket.close(linger=0)
    thread.stop()
    thread.join()


async def test_what_libzmq_reads_ahead_of_a_flood_stays_with_its_sender() -> None:
    """While nobody looks at what comes, the sender of large messages has to wait, as a slow network would make it."""
    thread = stream_thread()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.XPUB) as pub, thread.socket(zmq.SUB, READ_AHEAD) as sub:
        pub.set(zmq.XPUB_NODROP, 1)
        pub.sndhwm, pub.sndtimeo, pub.linger = 1, 200, 0
        sub.subscribe(b"")
        sub.connect(f"tcp://127.0.0.1:{pub.bind_to_random_port('tcp://127.0.0.1')}")
        assert pub.recv() == b"\x01"
        taken = 0
        with contextlib.suppress(zmq.Again):
            while taken < 100:
                pub.send(bytes(MAX_MESSAGE_BYTES))
                taken += 1
        # Its own queue and what the system holds of a connection come on top.
        assert taken < 20
    thread.stop()
    thread.join()


def test_deliveries_that_wait_for_the_loop_are_bounded_by_what_they_take() -> None:
    """A few large ones stop the thread as many small ones do; as soon as the loop has taken them there is room again."""
    loop, handled = asyncio.new_event_loop(), []
    inbox = Inbox(lambda _, delivery: handled.append(delivery), clock=lambda: 0.0)
    inbox.open(loop)
    for event in (AllCleared(), BlockStored([EngineHash(1)], None, bytes(1 << 20), 16)):
        handled.clear()
        count = 0
        while not inbox.is_full():
            inbox.put(0, Apply(Batch(None, events=[event])))
            count += 1
        assert count < (20_000 if isinstance(event, AllCleared) else 9)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert len(handled) == count
        assert not inbox.is_full()
    loop.close()


def test_a_stream_that_says_much_holds_back_itself_only() -> None:
    """The loop has enough of it long before it has enough in all, and again takes from it what it has room for."""
    loop = asyncio.new_event_loop()
    inbox = Inbox(lambda *_: None, clock=lambda: 0.0)
    inbox.open(loop)
    inbox.put(2, Apply(Batch(None, events=[AllCleared()])))
    while not inbox.has_enough_of(1):
        inbox.put(1, Apply(Batch(None, events=[AllCleared()] * 1000)))
    assert not inbox.is_full()
    assert not inbox.has_enough_of(2)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not inbox.has_enough_of(1)
    loop.close()


class BusyLoop:
    """The thread of one stream, whose event loop has enough of it until it says otherwise (implements kv_stream.Host)."""

    timing, drain_until = Timing(), 0.0

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.poller, self.time, self.busy, self.failures = zmq.Poller(), 0.0, True, Counter[str]()
        self._context = context

    def now(self) -> float:
        return self.time

    def accepts(self, topic: bytes) -> bool:
        return True

    def socket(self, kind: int, high_water_mark: int) -> "zmq.Socket[bytes]":
        self.opened = self._context.socket(kind)
        return self.opened

    def deliver(self, token: int, delivery: Delivery) -> None:
        if isinstance(delivery, Failed):
            self.failures[delivery.reason] += delivery.count

    def has_enough_of(self, token: int) -> bool:
        return self.busy

    def take_replay_slot(self, stream: Stream) -> bool:
        return False

    def free_replay_slot(self, stream: Stream) -> None: ...


@pytest.mark.parametrize(("apart_s", "floods"), [(1.5, False), (0.0, True)])
def test_what_waited_for_the_event_loop_is_charged_by_when_it_came(apart_s: float, floods: bool) -> None:  # noqa: FBT001  # a parameter
    """An engine's evictions of three seconds that the loop had no time for are no flood when it has; as many in one moment are."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    evicted = msgspec.msgpack.encode([1.0, [["BlockRemoved", list(range(1 << 60, (1 << 60) + 100_000)), "GPU"]], 0])
    with context, context.socket(zmq.XPUB) as pub:
        pub.linger = 0
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        host = BusyLoop(context)
        stream = Stream(host, 1, StreamAddress("127.0.0.1", port, None))
        stream.connect()
        assert pub.recv() == b"\x01"
        sub = host.opened
        for number in range(3):
            pub.send_multipart([b"", number.to_bytes(8, "big"), evicted])
            assert sub.poll(10_000)
            stream.receive()
            host.time += apart_s
        host.busy = False
        while stream.deadline < 0:
            stream.turn({})
        assert bool(host.failures["flood"]) == floods
        stream.close()


async def test_a_message_larger_than_any_engine_sends_costs_its_sender_only(publish: Publish) -> None:
    """Its connection ends and begins again, what it said before is asked for again, and its neighbour hears no difference."""
    rig = Rig(timing=replace(QUICK, attempt_s=0.3))
    bad, good = publish(), publish()
    rig.source.sync([endpoint("bad", bad), endpoint("good", good)])
    await rig.settled()
    await bad.subscribed()
    await bad.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("bad", PROMPT) == 16)
    await bad.send([b"", (7).to_bytes(8, "big"), bytes(MAX_MESSAGE_BYTES + 1)])
    await eventually(lambda: "lost" in rig.notes.states[EndpointId("bad")])
    await good.store(OTHER)
    await eventually(lambda: rig.hit_tokens("good", OTHER) == 16)
    await eventually(lambda: rig.state("bad") == "live" and rig.hit_tokens("bad", PROMPT) == 16)

    assert set(rig.notes.states[EndpointId("good")]) <= {"connecting", "replaying", "live"}
    assert rig.notes.errors == [(EndpointId("bad"), "protocol")]
    await rig.source.stop()


async def test_a_history_beyond_the_buffer_passes_through_it(rig: Rig, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay holds so many bytes; cut off there, it is asked for again from where it got to, until nothing is missing."""
    monkeypatch.setattr(kv_replay, "BUFFER_BYTES", 1_000)
    pod = publish()
    prompts = [[n, n, n, n] for n in range(1, 31)]
    for prompt in prompts:
        await pod.store(prompt)
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()

    assert [rig.hit_tokens("a", prompt) for prompt in prompts] == [4] * len(prompts)
    assert rig.state("a") == "live"
    assert pod.replays == sorted(pod.replays)
    assert len(pod.replays) > 2


async def test_replays_wait_for_their_turn(publish: Publish) -> None:
    """So many run at a time, which bounds what they hold together; the others are asked when one that does not answer is given up."""
    rig = Rig(timing=replace(QUICK, replay_idle_s=2.0))
    pods = [publish() for _ in range(MAX_REPLAYS + 2)]
    for pod in pods:
        await pod.store(PROMPT)
        pod.silent = True
    rig.source.sync([endpoint(f"pod-{i}", pod) for i, pod in enumerate(pods)])
    await eventually(lambda: sum(bool(pod.replays) for pod in pods) == MAX_REPLAYS)
    for pod in pods:
        pod.silent = False
    await rig.settled()
    await eventually(lambda: sum(rig.hit_tokens(f"pod-{i}", PROMPT) == 16 for i in range(len(pods))) == 2)
    assert all(pod.replays for pod in pods)
    await rig.source.stop()
