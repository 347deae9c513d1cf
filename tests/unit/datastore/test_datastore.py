"""The pool state: what readers see after each event."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from epp.datastore import EndpointReached, EndpointsListed, MetricsScraped, PoolState
from epp.domain import NEVER_SCRAPED, Endpoint, EndpointId, EndpointMetrics

NAMES = "abcd"


def endpoint(name: str, port: int = 8000, **labels: str) -> Endpoint:
    return Endpoint(EndpointId(name), "10.0.0.1", port, labels)


def scraped(name: str, waiting: int) -> MetricsScraped:
    return MetricsScraped(EndpointId(name), EndpointMetrics(waiting=waiting, updated_at=1.0))


def test_a_list_replaces_the_pool_and_says_who_came_and_went() -> None:
    """Lists are level-based: what is missing in one is gone."""
    pool = PoolState()
    first = pool.apply(EndpointsListed([endpoint("a"), endpoint("b")]))
    second = pool.apply(EndpointsListed([endpoint("b"), endpoint("c")]))
    assert (first.added, first.removed) == (("a", "b"), ())
    assert (second.added, second.removed) == (("c",), ("a",))
    assert [e.id for e in pool.snapshot().endpoints] == ["b", "c"]


def test_an_endpoint_that_stays_keeps_its_metrics_and_gets_its_new_labels() -> None:
    """Relabelling a model server does not make its load unknown."""
    pool = PoolState()
    pool.apply(EndpointsListed([endpoint("a")]))
    pool.apply(scraped("a", 3))
    change = pool.apply(EndpointsListed([endpoint("a", role="decode")]))
    (kept,) = pool.snapshot().endpoints
    assert (change.added, change.removed) == ((), ())
    assert (kept.metrics.waiting, kept.labels) == (3, {"role": "decode"})


def test_an_endpoint_that_moved_is_another_one() -> None:
    """A name that now stands at another port: what was known of the old server must be forgotten."""
    pool = PoolState()
    pool.apply(EndpointsListed([endpoint("a", 8000)]))
    pool.apply(scraped("a", 3))
    change = pool.apply(EndpointsListed([endpoint("a", 8001)]))
    assert (change.added, change.removed) == (("a",), ("a",))
    assert pool.snapshot().endpoints[0].metrics is NEVER_SCRAPED


def test_a_snapshot_never_changes_and_is_shared_until_something_does() -> None:
    """Readers may hold a snapshot as long as they like."""
    pool = PoolState()
    pool.apply(EndpointsListed([endpoint("a"), endpoint("b")]))
    before = pool.snapshot()
    assert pool.snapshot() is before
    pool.apply(scraped("b", 7))
    after = pool.snapshot()
    assert [e.metrics.waiting for e in before.endpoints] == [0, 0]
    assert [e.metrics.waiting for e in after.endpoints] == [0, 7]
    assert after.endpoints[0] is before.endpoints[0]


def test_metrics_of_an_endpoint_that_has_gone_are_ignored() -> None:
    """A scrape that was under way when the endpoint left brings nothing back."""
    pool = PoolState()
    pool.apply(EndpointsListed([endpoint("a")]))
    pool.apply(EndpointsListed([]))
    pool.apply(scraped("a", 3))
    assert pool.snapshot().endpoints == ()


def reached(name: str, *, reachable: bool) -> EndpointReached:
    return EndpointReached(EndpointId(name), reachable)


def test_who_cannot_be_reached_is_no_choice() -> None:
    """Until it can, or is another server; one that has gone meanwhile is not brought back."""
    pool = PoolState()
    pool.apply(EndpointsListed([endpoint("a"), endpoint("b")]))
    pool.apply(reached("a", reachable=False))
    pool.apply(reached("z", reachable=False))
    assert ([e.id for e in pool.snapshot().endpoints], pool.reachable) == (["b"], 1)
    assert [e.id for e in pool.snapshot().listed] == ["a", "b"]
    pool.apply(EndpointsListed([endpoint("a", role="decode"), endpoint("b")]))
    assert [e.id for e in pool.snapshot().endpoints] == ["b"]
    pool.apply(reached("a", reachable=True))
    assert ([e.id for e in pool.snapshot().endpoints], pool.reachable) == (["a", "b"], 2)
    pool.apply(reached("a", reachable=False))
    pool.apply(EndpointsListed([endpoint("a", 8001), endpoint("b")]))
    assert ([e.id for e in pool.snapshot().endpoints], pool.reachable) == (["a", "b"], 2)


def test_where_nobody_can_be_reached_all_are_choices() -> None:
    """The fault may be ours: a firewall between us and them, say."""
    pool = PoolState()
    pool.apply(EndpointsListed([endpoint("a"), endpoint("b")]))
    for name in "ab":
        pool.apply(reached(name, reachable=False))
    assert ([e.id for e in pool.snapshot().endpoints], pool.reachable) == (["a", "b"], 0)


_events = st.lists(
    st.one_of(
        st.lists(st.builds(endpoint, st.sampled_from(NAMES), st.sampled_from([8000, 8001]))).map(EndpointsListed),
        st.builds(scraped, st.sampled_from(NAMES), st.integers(1, 9)),
        st.none(),
    )
)


@given(_events)
def test_the_pool_equals_a_plain_dictionary(events: list[EndpointsListed | MetricsScraped | None]) -> None:
    """Whatever the order of events and looks (None), a reader sees what a naive model holds."""
    pool, model = PoolState(), dict[EndpointId, Endpoint]()
    for event in events:
        if event is None:
            pool.snapshot()
            continue
        change = pool.apply(event)
        before = dict(model)
        if isinstance(event, MetricsScraped):
            if event.endpoint in model:
                model[event.endpoint] = dataclasses.replace(model[event.endpoint], metrics=event.metrics)
        else:
            model = {}
            for e in event.endpoints:
                old = before.get(e.id)
                model[e.id] = dataclasses.replace(e, metrics=old.metrics) if old is not None and old.port == e.port else e
            assert set(change.removed) == {key for key in before if key not in model or model[key].port != before[key].port}
            assert set(change.added) == {key for key in model if key not in before or model[key].port != before[key].port}
    assert pool.snapshot().endpoints == tuple(model.values())
