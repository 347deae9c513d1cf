"""What no sequence number tells: losses at the end of a stream, engines that die, peers that flood."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from epp import names
from epp.domain import Endpoint, EndpointId, EndpointMetrics
from epp.sources.kv_inbox import Inbox
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Publisher, Rig, endpoint

Publish = Callable[..., Publisher]
PROMPT = list(range(1, 17))
OTHER = list(range(101, 117))


async def heard(rig: Rig, pod: Publisher) -> Publisher:
    """Of endpoint "a", once the rig listens and knows that it holds PROMPT."""
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)
    return pod


async def test_a_loss_at_the_end_of_an_idle_stream_is_found(publish: Publish) -> None:
    """No later batch shows the hole; the check does."""
    rig = Rig(timing=replace(QUICK, check_s=0.1))
    pod = await heard(rig, publish())
    await pod.evict(PROMPT, lost=True)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 12)

    assert rig.state("a") == "live"
    await rig.source.stop()


async def test_an_engine_that_is_gone_holds_nothing(rig: Rig, publish: Publish) -> None:
    """Without a replay socket too: a refused connection says it, long before a new engine publishes."""
    pod = publish()
    rig.source.sync([endpoint("a", pod, replay=False)])
    await rig.settled()
    await pod.subscribed()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)

    await pod.stop()
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 0)
    assert rig.state("a") == "lost"


async def test_a_history_of_nothing_is_read_once_and_not_to_its_end(rig: Rig, publish: Publish) -> None:
    """The stream goes on without it, and says so; it is not asked for again, not even where something is missing, until there is another connection."""
    pod = publish()
    for _ in range(3_000):
        await pod.publish([{"type": "of another time", "words": "x" * 1_000}], lost=True)
    rig.source.sync([endpoint("a", pod)])
    await eventually(lambda: rig.notes.errors == [(EndpointId("a"), "flood")])
    await pod.subscribed()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)
    await pod.publish([], lost=True)
    await pod.store(OTHER)
    await eventually(lambda: rig.hit_tokens("a", OTHER) == 16)
    assert rig.state("a") == "partial"
    assert pod.replays == [0]
    assert rig.notes.errors == [(EndpointId("a"), "flood")]

    await pod.stop()
    await eventually(lambda: rig.state("a") == "lost")
    anew = publish(port=pod.port, replay_port=pod.replay_port)
    await eventually(lambda: anew.replays != [])


async def test_a_history_of_events_nobody_knows_comes_to_its_end(rig: Rig, publish: Publish) -> None:
    """An engine of another time, whose batches are as small as batches are."""
    pod = publish()
    for _ in range(3_000):
        await pod.publish([{"type": "of another time"}], lost=True)
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)
    assert rig.state("a") == "live"
    assert rig.notes.errors == []


async def test_garbage_costs_the_same_live(rig: Rig, publish: Publish) -> None:
    """More than a megabyte of it at once, and the peer is cut off for a while; what is behind is learnt then."""
    pod = publish()
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.subscribed()
    for _ in range(3_000):
        await pod.publish([{"type": "of another time", "words": "x" * 1_000}])
    await eventually(lambda: (EndpointId("a"), "flood") in rig.notes.errors)
    await eventually(lambda: rig.state("a") == "lost")


async def test_a_peer_that_floods_is_cut_off_and_heard_again(rig: Rig, publish: Publish) -> None:
    """It loses its stream for a moment; its neighbour hears no difference, and what it holds is learnt by replay."""
    bad, good = publish(), publish()
    rig.source.sync([endpoint("bad", bad), endpoint("good", good)])
    await rig.settled()
    await bad.subscribed()
    await bad.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("bad", PROMPT) == 16)

    async def flooded() -> bool:
        for _ in range(2_000):
            await bad.send([b"", b"\0"])
        return (EndpointId("bad"), "flood") in rig.notes.errors

    await eventually(flooded)
    await good.store(OTHER)
    await eventually(lambda: rig.hit_tokens("good", OTHER) == 16)
    await eventually(lambda: rig.state("bad") == "live")

    assert rig.hit_tokens("bad", PROMPT) == 16
    assert "lost" in rig.notes.states[EndpointId("bad")]
    assert {name for name, _ in rig.notes.errors} == {"bad"}


async def test_an_engine_that_seems_to_hold_more_than_it_has_is_learnt_anew(publish: Publish) -> None:
    """Evictions were lost: its own word on how many blocks it has shows it, and the replay says what it really holds."""
    rig = Rig(timing=replace(QUICK, check_s=1000.0))
    pod = await heard(rig, publish())
    await pod.evict(PROMPT, lost=True)

    rig.source.reconcile(EndpointId("a"), EndpointMetrics(num_blocks=4))
    assert not rig.notes.errors
    rig.source.reconcile(EndpointId("a"), EndpointMetrics(num_blocks=3))
    assert rig.notes.errors == [(EndpointId("a"), "more_blocks_than_the_engine_has")]
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 12)
    await rig.source.stop()


async def test_blocks_are_held_against_what_one_rank_has(publish: Publish) -> None:
    """Ranks have caches of their own: only one that is taken for fuller than its own is learnt anew."""
    rig = Rig(timing=replace(QUICK, check_s=1000.0))
    pods = [publish(), publish()]
    # A rank adds its number to the ports it is given.
    given = [
        {names.KV_EVENTS_PORT_LABEL: str(pod.port - i), names.KV_REPLAY_PORT_LABEL: str(pod.replay_port - i)} for i, pod in enumerate(pods)
    ]
    rig.source.sync([Endpoint(EndpointId("a"), "127.0.0.1", 8000, labels, rank=rank) for rank, labels in enumerate(given)])
    await rig.settled()
    for pod in pods:
        await pod.store(PROMPT)
    await eventually(lambda: rig.index.gpu_blocks(EndpointId("a")) == {0: 4, 1: 4})
    await pods[1].store(OTHER)
    await pods[1].evict(PROMPT, lost=True)
    await eventually(lambda: rig.hit_tokens("a", OTHER) == 16)

    rig.source.reconcile(EndpointId("a"), EndpointMetrics(num_blocks=7))
    assert rig.notes.errors == [(EndpointId("a"), "more_blocks_than_the_engine_has")]
    assert rig.index.gpu_blocks(EndpointId("a"))[0] == 4
    await eventually(lambda: rig.index.gpu_blocks(EndpointId("a")) == {0: 4, 1: 7})
    await rig.source.stop()


async def test_an_engine_that_sleeps_holds_nothing(publish: Publish) -> None:
    """It says that its caches are gone only with its next step, which a sleeping engine does not take (aibrix#2287)."""
    rig = Rig(timing=replace(QUICK, check_s=1000.0))
    pod = await heard(rig, publish())

    for _ in range(3):
        rig.source.reconcile(EndpointId("a"), EndpointMetrics(asleep=True))
    assert rig.hit_tokens("a", PROMPT) == 0
    assert rig.notes.errors == [(EndpointId("a"), "the_engine_sleeps")], "once, not with every scrape"
    rig.source.reconcile(EndpointId("a"), EndpointMetrics())
    await pod.reset()
    await pod.store(PROMPT[:8])
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 8)
    await rig.source.stop()


async def test_counters_that_go_back_are_another_process(publish: Publish) -> None:
    """Whatever the streams made of it, what was known before is learnt anew."""
    rig = Rig(timing=replace(QUICK, check_s=1000.0))
    pod = await heard(rig, publish())
    await pod.evict(PROMPT, lost=True)

    for queries in (100.0, 100.0, 250.0):
        rig.source.reconcile(EndpointId("a"), EndpointMetrics(prefix_queries=queries))
    assert not rig.notes.errors
    rig.source.reconcile(EndpointId("a"), EndpointMetrics(prefix_queries=20.0))
    assert rig.notes.errors == [(EndpointId("a"), "the_engine_began_anew")]
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 12)
    await rig.source.stop()


async def test_it_is_known_how_far_the_caches_are_known(rig: Rig, publish: Publish) -> None:
    """After a start: who has told, how many blocks, and whose past nobody can tell."""
    told, blind = publish(), publish()
    await told.store(PROMPT)
    rig.source.sync([endpoint("a", told), endpoint("b", blind, replay=False)])
    await rig.settled()
    await eventually(lambda: rig.source.learnt().blocks == 4)
    learnt = rig.source.learnt()
    assert (learnt.told, learnt.endpoints, learnt.without_replay) == (1, 2, ["b"])


@pytest.mark.parametrize(("steps", "floods"), [(20, False), (1, True)])
async def test_what_waited_at_an_engine_that_connects_for_a_busy_event_loop_is_no_flood(
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    floods: bool,  # noqa: FBT001  # a parameter
) -> None:
    """What an engine said in ten seconds of that comes at once, and is applied; as much of half a second is a flood."""
    now, left, busy = 100.0, 0, False

    def is_full(_: Inbox) -> bool:
        """Asked once a turn of the thread, which turns often while the loop is busy."""
        nonlocal now, left, busy
        if left:
            left -= 1
            now += 0.5
            busy = bool(left)
        return busy

    monkeypatch.setattr(Inbox, "is_full", is_full)
    rig = Rig(clock=lambda: now, bind="tcp://127.0.0.1:*", discover=False)
    pod = publish(connect=rig.source.bound_url, topic=b"kv@127.0.0.1:8000@m")
    rig.source.sync([endpoint("a", pod)])
    await pod.subscribed()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)

    busy = True
    for _ in range(8_000):
        await pod.publish([{"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}])
    await pod.store(OTHER)
    left = steps
    await eventually(lambda: rig.hit_tokens("a", OTHER) == 16 or bool(rig.notes.errors))
    await rig.source.stop()
    assert ("flood" in {reason for _, reason in rig.notes.errors}) == floods
    assert floods or not rig.notes.gaps


@pytest.mark.parametrize("direction", ["we connect", "they connect"])
async def test_what_was_sent_while_we_stood_still_is_no_flood(publish: Publish, direction: str) -> None:
    """The machine was paused for ten seconds: what an engine published meanwhile comes at once, and is applied; the same without a pause is a flood."""
    ahead = 0.0
    binds = direction == "they connect"
    rig = Rig(clock=lambda: time.monotonic() + ahead, bind="tcp://127.0.0.1:*" if binds else "", discover=not binds)
    pod = publish(connect=rig.source.bound_url, topic=b"kv@127.0.0.1:8000@m") if binds else publish()
    rig.source.sync([endpoint("a", pod)])
    await rig.settled()
    await pod.subscribed()
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)

    async def burst() -> None:
        for _ in range(8_000):
            await pod.publish([{"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}])

    ahead += 10.0
    await burst()
    await pod.store(OTHER)
    await eventually(lambda: rig.hit_tokens("a", OTHER) == 16)
    assert rig.notes.errors == []
    assert rig.notes.gaps == []

    async def flooded() -> bool:
        await burst()
        return "flood" in {reason for _, reason in rig.notes.errors}

    await eventually(flooded)
    await rig.source.stop()
