"""Engines that connect to a socket of ours, as KServe 0.17 configures them: the topic alone tells who speaks."""

from collections.abc import AsyncIterator, Callable

import pytest

from epp.domain import Endpoint, EndpointId, EndpointMetrics
from epp.errors import ConfigError
from epp.sources.kv_ports import EventPorts, Ports
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import Publisher, Rig, endpoint

Publish = Callable[..., Publisher]
PROMPT = list(range(1, 17))
OTHER = list(range(101, 117))
ANY_PORT = "tcp://127.0.0.1:*"


@pytest.fixture
async def bound() -> AsyncIterator[Rig]:
    """A rig that binds and connects to nobody."""
    rig = Rig(bind=ANY_PORT, discover=False)
    yield rig
    await rig.source.stop()


def an_endpoint(name: str, address: str = "127.0.0.1", port: int = 8000, rank: int = 0) -> Endpoint:
    return Endpoint(EndpointId(name), address, port, rank=rank)


@pytest.mark.parametrize("pod", ["10.0.0.5", "10.0.0.5:8000"])
async def test_the_topic_names_the_endpoint(bound: Rig, publish: Publish, pod: str) -> None:
    """With and without the serving port; its neighbours hold nothing."""
    bound.source.sync([an_endpoint("a", "10.0.0.5"), an_endpoint("b", "10.0.0.6")])
    await bound.settled()
    engine = publish(connect=bound.source.bound_url, topic=f"kv@{pod}@tiny".encode())
    await engine.subscribed()
    await engine.store(PROMPT)
    await eventually(lambda: bound.hit_tokens("a", PROMPT) == 16)

    assert bound.hit_tokens("b", PROMPT) == 0
    assert bound.state("a") == "live"
    await engine.evict(PROMPT)
    await eventually(lambda: bound.hit_tokens("a", PROMPT) == 12)


async def test_what_an_engine_says_before_it_is_listed_is_kept(bound: Rig, publish: Publish) -> None:
    """Discovery can be slower than the first request."""
    bound.source.sync([an_endpoint("b", "10.0.0.6")])
    early = publish(connect=bound.source.bound_url, topic=b"kv@10.0.0.5@tiny")
    known = publish(connect=bound.source.bound_url, topic=b"kv@10.0.0.6@tiny")
    await early.subscribed()
    await known.subscribed()
    await early.store(PROMPT)
    await known.store(PROMPT)
    await eventually(lambda: bound.hit_tokens("b", PROMPT) == 16)

    async def listed() -> bool:
        bound.source.sync([an_endpoint("a", "10.0.0.5"), an_endpoint("b", "10.0.0.6")])
        return bound.hit_tokens("a", PROMPT) == 16

    await eventually(listed)


async def test_ranks_of_one_address_are_told_apart_by_port_or_rank(bound: Rig, publish: Publish) -> None:
    """A name that could mean two endpoints means none."""
    bound.source.sync([an_endpoint("a-1", "10.0.0.5", 8001, 1), an_endpoint("a-2", "10.0.0.5", 8002, 2)])
    by_port = publish(connect=bound.source.bound_url, topic=b"kv@10.0.0.5:8002@tiny")
    vague = publish(connect=bound.source.bound_url, topic=b"kv@10.0.0.5@tiny")
    await by_port.subscribed()
    await vague.subscribed()
    await vague.store(OTHER)
    await by_port.store(PROMPT)
    await eventually(lambda: bound.hit_tokens("a-2", PROMPT) == 16)

    assert (bound.hit_tokens("a-1", OTHER), bound.hit_tokens("a-2", OTHER)) == (0, 0)


async def test_ranks_behind_one_port_have_caches_of_their_own(bound: Rig, publish: Publish) -> None:
    """One that restarts takes nothing along of the other's, together they may hold more than one has, and all go with their endpoint."""
    a, topic = an_endpoint("a", "10.0.0.5"), b"kv@10.0.0.5@tiny"
    bound.source.sync([a])
    one, other = (publish(connect=bound.source.bound_url, topic=topic, rank=rank) for rank in (0, 1))
    for engine, prompt in ((one, PROMPT), (other, OTHER)):
        await engine.subscribed()
        await engine.store(prompt)
    await eventually(lambda: bound.hit_tokens("a", PROMPT) == bound.hit_tokens("a", OTHER) == 16)
    bound.source.reconcile(a.id, EndpointMetrics(num_blocks=4))
    assert bound.notes.errors == []
    await other.stop()
    again = publish(connect=bound.source.bound_url, topic=topic, rank=1)
    await again.subscribed()
    await again.store(OTHER[:8])
    await eventually(lambda: bound.hit_tokens("a", OTHER) == 8)
    assert bound.hit_tokens("a", PROMPT) == 16

    bound.source.reconcile(a.id, EndpointMetrics(num_blocks=3))
    assert bound.index.gpu_blocks(a.id) == {1: 2}
    await again.store([7, *PROMPT])
    await eventually(lambda: bound.index.blocks(a.id) == 6)
    bound.source.sync([])
    assert bound.index.blocks(a.id) == 0


@pytest.mark.parametrize("overfull", [0, 2])
async def test_a_rank_that_seems_to_hold_more_than_it_has_costs_the_others_nothing(bound: Rig, publish: Publish, overfull: int) -> None:
    """None behind this port can say again what it holds, so what the others said is kept, whichever it is."""
    a, topic = an_endpoint("a", "10.0.0.5"), b"kv@10.0.0.5@tiny"
    bound.source.sync([a])
    for rank in range(4):
        engine = publish(connect=bound.source.bound_url, topic=topic, rank=rank)
        await engine.subscribed()
        await engine.store(PROMPT if rank == overfull else OTHER[:8])
    await eventually(lambda: bound.index.gpu_blocks(a.id) == {rank: 4 if rank == overfull else 2 for rank in range(4)})

    bound.source.reconcile(a.id, EndpointMetrics(num_blocks=3))
    assert bound.notes.errors == [(a.id, "more_blocks_than_the_engine_has")]
    assert bound.index.gpu_blocks(a.id) == {rank: 2 for rank in range(4) if rank != overfull}


async def test_an_engine_that_restarts_is_another_one(bound: Rig, publish: Publish) -> None:
    """Its first message clears what the old one held."""
    bound.source.sync([an_endpoint("a", "10.0.0.5")])
    first = publish(connect=bound.source.bound_url, topic=b"kv@10.0.0.5@tiny")
    await first.subscribed()
    await first.store(PROMPT)
    await eventually(lambda: bound.hit_tokens("a", PROMPT) == 16)
    await first.stop()
    second = publish(connect=bound.source.bound_url, topic=b"kv@10.0.0.5@tiny")
    await second.subscribed()
    await second.store(OTHER)
    await eventually(lambda: bound.hit_tokens("a", OTHER) == 16)

    assert bound.hit_tokens("a", PROMPT) == 0


async def test_both_directions_at_once_count_once(publish: Publish) -> None:
    """What is heard over our own connection is not heard again; whoever only connects is heard as well."""
    rig = Rig(bind=ANY_PORT)
    pod = publish()
    rig.source.sync([endpoint("a", pod), an_endpoint("b", "127.0.0.2")])
    await rig.settled()
    echo = publish(connect=rig.source.bound_url, topic=b"kv@127.0.0.1:8000@tiny")
    other = publish(connect=rig.source.bound_url, topic=b"kv@127.0.0.2:8000@tiny")
    await echo.subscribed()
    await other.subscribed()
    await echo.store(OTHER)
    await other.store(PROMPT)
    await pod.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == rig.hit_tokens("b", PROMPT) == 16)
    await eventually(lambda: bool(rig.notes.errors))

    assert rig.hit_tokens("a", OTHER) == 0
    assert rig.index.blocks(EndpointId("a")) == 4
    assert {reason for _, reason in rig.notes.errors} == {"both_directions"}
    await rig.source.stop()


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"kv@10.0.0.5@tiny", b"\0" * 8], "frames"),
        ([b"", b"\0" * 8, b"\xc0"], "topic"),
        ([b"kv@10.0.0.5", b"\0" * 8, b"\xc0"], "topic"),
        ([b"kv@10.0.0.5@tiny", b"\0" * 8, b"garbage"], "payload"),
    ],
)
async def test_messages_nobody_can_place_are_counted(bound: Rig, publish: Publish, frames: list[bytes], reason: str) -> None:
    """They change nothing."""
    bound.source.sync([an_endpoint("a", "10.0.0.5")])
    engine = publish(connect=bound.source.bound_url)
    await engine.subscribed()
    await engine.send(frames)
    await eventually(lambda: [told for _, told in bound.notes.errors] == [reason])


async def test_an_address_that_cannot_be_bound_is_named(publish: Publish) -> None:
    """Place and remedy, at the start."""
    taken = publish()
    with pytest.raises(ConfigError, match=rf"zmqEndpoint 'tcp://127.0.0.1:{taken.port}'.*free port"):
        Rig(bind=f"tcp://127.0.0.1:{taken.port}")


async def test_what_an_engine_said_outlives_the_answer_where_it_publishes(publish: Publish) -> None:
    """It is asked meanwhile, as all are that have no label, and says that it connects; nobody else could tell again what it said."""
    rig = Rig(bind=ANY_PORT, ports=EventPorts(None, None, ask=lambda _: None))
    one = an_endpoint("a")
    rig.source.sync([one])
    rig.source.told(one, None)  # not up yet: listened to where convention has it
    engine = publish(connect=rig.source.bound_url, topic=b"kv@127.0.0.1:8000@tiny")
    await engine.subscribed()
    await engine.store(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 16)
    rig.source.told(one, Ports(0, 0, connects=True))
    assert rig.hit_tokens("a", PROMPT) == 16
    await engine.evict(PROMPT)
    await eventually(lambda: rig.hit_tokens("a", PROMPT) == 12)
    await rig.source.stop()
