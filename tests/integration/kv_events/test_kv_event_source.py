"""KV events over real ZMQ sockets: joining late, losing messages, restarting, and peers that are no engines."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from epp import names
from epp.domain import Endpoint, EndpointId
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import Publisher, Rig, endpoint

Publish = Callable[..., Publisher]
PROMPT = list(range(1, 17))
OTHER = list(range(101, 117))
# More batches than a ROUTER queues for its peer, and than the source lets wait for the event loop.
LONG_HISTORY = 3_000


async def test_events_of_a_live_stream_reach_the_index(rig: Rig, publish: Publish) -> None:
    """Stores, evictions and a reset are known as they are published."""
    pod = publish()
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)

    await pod.evict(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 12)
    await pod.reset()
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 0)
    assert rig.state("a") == "live"
    assert (rig.notes.gaps, rig.notes.errors) == ([], [])


@pytest.mark.parametrize("old_replies", [False, True], ids=["replies-with-topic", "replies-without-topic"])
async def test_a_late_joiner_replays_what_it_missed(rig: Rig, publish: Publish, *, old_replies: bool) -> None:
    """Start-up is over only when the index knows what was cached before; both reply shapes are understood."""
    pod = publish()
    pod.old_replies = old_replies
    for i in range(LONG_HISTORY):
        await pod.store([*PROMPT, i, i, i, i])
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()

    assert rig.index.blocks(EndpointId("a")) == 4 + LONG_HISTORY
    assert all(rig.hit_tokens("a", [*PROMPT, i, i, i, i]) == 20 for i in range(LONG_HISTORY))
    assert rig.notes.states[EndpointId("a")] == ["connecting", "replaying", "live"]


async def test_a_late_joiner_of_a_ring_that_lost_its_head_is_partial(rig: Rig, publish: Publish) -> None:
    """Chains that begin in what is left are found; blocks whose parents are lost are counted, not guessed."""
    pod = publish(ring=2)
    await pod.store([5, 5, 5, 5])
    await pod.store(PROMPT[:4])
    await pod.store(PROMPT)
    await pod.store(OTHER)
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()

    assert (rig.hit_tokens("a", PROMPT), rig.hit_tokens("a", OTHER)) == (0, 16)
    assert rig.state("a") == "partial"
    assert rig.notes.errors == [(EndpointId("a"), "orphan")]


async def test_a_gap_is_healed_by_replay(rig: Rig, publish: Publish) -> None:
    """A lost eviction and a lost store are brought back when a later batch shows the hole, even by a socket that overruns."""
    pod = publish()
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)

    await pod.evict(PROMPT, lost=True)
    await pod.store(OTHER, lost=True)
    pod.drop_replies = {2}
    await pod.store([5, 5, 5, 5])
    await eventually(lambda: rig.hit_tokens("a", [5, 5, 5, 5]) == 4)

    assert (rig.hit_tokens("a", PROMPT), rig.hit_tokens("a", OTHER)) == (12, 16)
    assert rig.notes.gaps == [(EndpointId("a"), 2)]
    assert pod.replays[-2:] == [0, 1]
    await eventually(lambda: rig.state("a") == "live")


async def test_a_gap_without_replay_socket_is_counted(rig: Rig, publish: Publish) -> None:
    """What is known stays and the stream goes on."""
    pod = publish()
    rig.source.sync([endpoint("a", pod, replay=False)])
    await rig.settled()
    await pod.subscribed()
    await pod.store(PROMPT)
    await pod.store(OTHER, lost=True)
    await pod.store([5, 5, 5, 5])
    await eventually(lambda: rig.hit_tokens("a", [5, 5, 5, 5]) == 4)

    assert (rig.hit_tokens("a", PROMPT), rig.hit_tokens("a", OTHER)) == (16, 0)
    assert rig.notes.gaps == [(EndpointId("a"), 1)]
    assert rig.state("a") == "partial"


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no-replay"])
async def test_a_restarted_engine_is_not_credited_with_what_it_lost(rig: Rig, publish: Publish, *, replay: bool) -> None:
    """The new process is known by its numbers and times, with a replay socket even before it publishes anything we hear."""
    pod = publish()
    rig.source.sync([endpoint("a", pod, replay=replay)])
    await rig.settled()
    if not replay:
        await pod.subscribed()
    await pod.store(PROMPT)
    await pod.store(OTHER)
    await eventually(lambda: rig.hit_tokens("a", OTHER) == 16)

    await pod.stop()
    await eventually(lambda: rig.state("a") == "lost")
    again = publish(port=pod.port, replay_port=pod.replay_port)
    await again.store(OTHER, lost=replay)
    if not replay:
        await again.subscribed()
        await again.store(PROMPT[:4])
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == (0 if replay else 4))
    await eventually(lambda: rig.hit_tokens("a", OTHER) == (16 if replay else 0))
    assert rig.index.blocks(EndpointId("a")) == (4 if replay else 1)


async def test_a_replay_socket_that_never_answers_is_given_up(rig: Rig, publish: Publish) -> None:
    """Start-up goes on, what was published meanwhile is not lost, and the stream says that it is partial."""
    pod = publish()
    pod.silent = True
    await pod.store([5, 5, 5, 5])
    await pod.store([6, 6, 6, 6])
    rig.source.sync([endpoint("a", pod)])
    await eventually(lambda: rig.state("a") == "replaying")
    await pod.subscribed()
    await pod.store(PROMPT)
    await rig.settled()

    assert rig.notes.states[EndpointId("a")] == ["connecting", "replaying", "partial"]
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)


async def test_an_endpoint_that_is_down_delays_no_start_up_and_is_heard_when_it_comes(rig: Rig, publish: Publish) -> None:
    """A refused port counts as settled; the subscription is tried on."""
    gone = publish()
    await gone.stop()
    rig.source.sync([endpoint("a", gone)])
    await rig.settled()
    assert rig.state("a") == "connecting"

    pod = publish(port=gone.port, replay_port=gone.replay_port)
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)


async def test_an_endpoint_that_dies_during_its_replay_delays_no_start_up(rig: Rig, publish: Publish) -> None:
    """Nobody waits for what it would have told."""
    pod = publish()
    pod.silent = True
    rig.source.sync([endpoint("a", pod)])
    await eventually(lambda: rig.state("a") == "replaying")
    await pod.stop()
    await rig.settled()

    assert rig.state("a") == "lost"


GARBAGE = [
    [b"", b"\0" * 8],
    [b"", b"\0\0\1", b"\xc0"],
    [b"", (1).to_bytes(8, "big"), b"garbage"],
    [b"", (2).to_bytes(8, "big"), b"\xdd\xff\xff\xff\xff"],
    [b"", (3).to_bytes(8, "big"), b"\x93\xcb\x40\xf0\0\0\0\0\0\0\x91\x90\0"],
    [b"someone@else", (4).to_bytes(8, "big"), b"\xc0"],
    [b"", (1 << 63).to_bytes(8, "big"), b"\xc0", b"more"],
]


async def test_garbage_is_counted_and_stays_with_its_endpoint(rig: Rig, publish: Publish) -> None:
    """Frames and payloads no engine sends cost their sender's knowledge at most; its good events and other endpoints count."""
    bad, good = publish(), publish()
    rig.source.sync([endpoint("bad", bad, replay=False), endpoint("good", good, replay=False)])
    await rig.settled()
    await bad.subscribed()
    await good.subscribed()
    await good.store(PROMPT)
    await bad.store(PROMPT)
    for frames in GARBAGE:
        await bad.send(frames)
    await good.store(OTHER)
    await eventually(lambda: len(rig.notes.errors) == len(GARBAGE) and rig.hit_tokens("good", OTHER) == 16)

    assert sorted(reason for _, reason in rig.notes.errors) == ["event", "frames", "frames", "frames", "payload", "payload", "topic"]
    assert {endpoint_id for endpoint_id, _ in rig.notes.errors} == {"bad"}
    assert (rig.hit_tokens("bad", PROMPT), rig.hit_tokens("good", PROMPT)) == (16, 16)


@pytest.mark.parametrize("topic", [b"", b"kv@127.0.0.1:8000@model"])
async def test_topics_that_count(rig: Rig, publish: Publish, topic: bytes) -> None:
    """vLLM's default topic is empty; llm-d's begin with the filter."""
    pod = publish(topic=topic)
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)


async def test_endpoints_come_and_go(rig: Rig, publish: Publish) -> None:
    """What has gone is forgotten at once; the same name at another address starts anew; the others are left alone."""
    one, two = publish(), publish()
    await one.store(PROMPT)
    await two.store(OTHER)
    rig.source.sync([endpoint("a", one), endpoint("b", two)])
    await rig.settled()
    assert (rig.hit_tokens("a", PROMPT), rig.hit_tokens("b", OTHER)) == (16, 16)

    rig.source.sync([endpoint("b", two)])
    assert (rig.hit_tokens("a", PROMPT), rig.hit_tokens("b", OTHER)) == (0, 16)

    rig.source.sync([endpoint("b", one)])
    assert rig.hit_tokens("b", OTHER) == 0
    await eventually(lambda: rig.hit_tokens("b", PROMPT) == 16)


@pytest.mark.parametrize("label", ["http", "", "-1", "0", "65536"])
async def test_a_label_that_is_no_port_is_reported_once(rig: Rig, label: str) -> None:
    """Such an endpoint is not heard, and nobody waits for it."""
    odd = Endpoint(EndpointId("a"), "127.0.0.1", 8000, {names.KV_EVENTS_PORT_LABEL: label})
    rig.source.sync([odd])
    rig.source.sync([odd])
    await rig.settled()

    assert rig.notes.errors == [(EndpointId("a"), "port_label")]


async def test_a_rank_adds_its_index_to_both_ports(rig: Rig, publish: Publish) -> None:
    """Labels name the base ports of a pod; each data-parallel rank publishes on its own."""
    pod = publish()
    await pod.store(PROMPT)
    labels = {names.KV_EVENTS_PORT_LABEL: str(pod.port - 1), names.KV_REPLAY_PORT_LABEL: str(pod.replay_port - 1)}
    rig.source.sync([Endpoint(EndpointId("a"), "127.0.0.1", 8001, labels, rank=1)])
    await rig.settled()

    assert rig.hit_tokens("a", PROMPT) == 16


async def test_an_empty_pool_is_settled(rig: Rig) -> None:
    """Start-up waits for the first list of endpoints, not for endpoints."""
    assert not rig.source.settled.is_set()

    rig.source.sync([])
    assert rig.source.settled.is_set()


async def test_endpoints_beyond_the_sockets_there_are_harm_nobody(publish: Publish) -> None:
    """Who got a socket is heard, who did not is reported, start-up ends, and so does stop()."""
    rig = Rig(max_sockets=20)
    pods = [publish() for _ in range(12)]
    rig.source.sync([endpoint(f"pod-{i}", pod) for i, pod in enumerate(pods)])
    await rig.settled()
    assert {reason for _, reason in rig.notes.errors} == {"sockets"}
    heard = [i for i in range(12) if rig.state(f"pod-{i}") != "lost"]
    assert 0 < len(heard) < 12

    await pods[heard[0]].store(PROMPT)
    await eventually(lambda: rig.hit_tokens(f"pod-{heard[0]}", PROMPT) == 16)

    await rig.source.stop()
    await rig.source.run()


async def test_a_thread_that_fails_is_told_to_its_owner(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that stands still unnoticed would credit endpoints with blocks they lost: `run` raises, which ends the process."""

    def fail(*_: object) -> None:
        raise OSError("out of luck")

    monkeypatch.setattr(rig.source._thread, "_open", fail)
    rig.source.sync([Endpoint(EndpointId("a"), "127.0.0.1", 8000)])

    with pytest.raises(RuntimeError, match="the thread that receives KV events failed"):
        await rig.source.run()


async def test_an_endpoint_with_another_serving_port_starts_anew(rig: Rig, publish: Publish) -> None:
    """It is another engine to the rest of the picker; what the old one held is asked for again, not inherited."""
    pod = publish()
    await pod.store(PROMPT)
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    moved = endpoint("a", pod)
    rig.source.sync([replace(moved, port=moved.port + 1)])

    await eventually(lambda: rig.notes.states[EndpointId("a")] == ["connecting", "replaying", "live"] * 2)
    assert rig.hit_tokens("a", PROMPT) == 16
