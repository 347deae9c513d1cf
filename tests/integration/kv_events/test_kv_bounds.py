"""What one engine may send, and what of it may wait: bounds that cost its own stream only."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import zmq

from epp.domain import EndpointId
from epp.sources import kv_replay
from epp.sources.kv_messages import LIVE_HIGH_WATER_MARK, MAX_MESSAGE_BYTES, Timing
from epp.sources.kv_streams import MAX_REPLAYS, StreamThread
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Publisher, Rig, endpoint

Publish = Callable[..., Publisher]
PROMPT = list(range(1, 17))
OTHER = list(range(101, 117))


def test_every_socket_has_a_finite_queue_and_a_largest_message() -> None:
    """10,000 messages of at most 2 MiB: what comes beyond is dropped by ZMQ and shows as a gap."""
    thread = StreamThread(
        deliver=lambda *_: None,
        ended=lambda _: None,
        behind=lambda: False,
        accepts=lambda _: True,
        clock=lambda: 0.0,
        timing=Timing(),
        max_sockets=64,
        bind="tcp://127.0.0.1:*",
    )
    thread.start()
    sockets = [thread.socket(kind, LIVE_HIGH_WATER_MARK) for kind in (zmq.SUB, zmq.DEALER)]
    assert {(socket.rcvhwm, socket.maxmsgsize) for socket in sockets} == {(10_000, 2 << 20)}
    for socket in sockets:
        socket.close(linger=0)
    thread.stop()
    thread.join()


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
