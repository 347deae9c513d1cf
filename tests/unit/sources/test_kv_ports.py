"""Where an endpoint publishes its KV events: who is believed, and what an engine's answer means."""

import pytest

from epp import names
from epp.domain import Endpoint, EndpointId
from epp.sources.kv_messages import StreamAddress
from epp.sources.kv_ports import UNANSWERED, BadPortError, EventPorts, Ports, ports

A = EndpointId("a")


def endpoint(rank: int = 0, *, events: str | None = None, replay: str | None = None) -> Endpoint:
    labels = {names.KV_EVENTS_PORT_LABEL: events, names.KV_REPLAY_PORT_LABEL: replay}
    return Endpoint(A, "10.0.0.7", 8000, {label: value for label, value in labels.items() if value is not None}, rank)


@pytest.mark.parametrize(
    ("answer", "rank", "expected"),
    [
        (b'{"0": {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}}', 0, Ports(5557, 5657)),
        (b'{"0": {"endpoint": "tcp://10.0.0.7:40123", "replay_endpoint": null}}', 0, Ports(40123, 0)),
        (b'{"0": {"endpoint": "tcp://*:5557"}, "1": {"endpoint": "tcp://*:5558"}}', 1, Ports(5558, 0)),
        (b'{"0": {"endpoint": "tcp://[::]:5557"}}', 0, Ports(5557, 0)),
        (b'{"3": {"endpoint": "tcp://*:5560"}}', 0, Ports(5560, 0)),
        (b'{"0": {"endpoint": "tcp://*:5557", "topic": "kv", "hwm": 100000, "new_in_2027": [1]}}', 0, Ports(5557, 0)),
        # It connects to somebody, which may be us; vLLM binds to 0.0.0.0 no more than to any other address.
        (b'{"0": {"endpoint": "tcp://epp:5557"}}', 0, Ports(0, 0, connects=True)),
        (b'{"0": {"endpoint": "tcp://0.0.0.0:5557", "replay_endpoint": "tcp://*:5657"}}', 0, Ports(0, 5657, connects=True)),
        (b'{"0": {"endpoint": "ipc:///tmp/kv"}}', 0, Ports(0, 0)),
        (b'{"0": {"endpoint": "tcp://*:5557", "publisher": "null"}}', 0, Ports(0, 0)),
        (b'{"0": {"endpoint": "tcp://*:5557", "enable_kv_cache_events": false}}', 0, Ports(0, 0)),
        (b"{}", 0, Ports(0, 0)),
        (b'{"0": {"endpoint": "tcp://*:5557"}, "1": {"endpoint": "tcp://*:5558"}}', 2, Ports(0, 0)),
    ],
)
def test_an_engine_says_where_it_publishes(answer: bytes, rank: int, expected: Ports) -> None:
    """The answer of vLLM's /kv_event_sources, for the rank that the endpoint is."""
    assert ports(answer, endpoint(rank)) == expected


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b'{"0": 5557}', b'{"0": {"endpoint": 5557}}', b'{"0": {"endpoint": "tcp://*:99999"}}']
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    """A page of something else is not taken for "publishes nothing"."""
    with pytest.raises(ValueError):
        ports(answer, endpoint())


def test_who_is_believed() -> None:
    """Labels, then the configuration, then the engine's own word, then the convention; a rank adds its index to a base port."""
    asked: list[list[Endpoint]] = []

    def where(at: Endpoint, configured: int | None = None, told: Ports | None = None) -> object:
        known = EventPorts(configured, None, ask=lambda endpoints: asked.append(list(endpoints)))
        known.sync([at])
        known.told(A, told)
        return known.address(at)

    assert where(endpoint(1, events="7000", replay="7100"), 6000, Ports(8000, 8100)) == StreamAddress("10.0.0.7", 7001, 7101)
    assert where(endpoint(1), 6000, Ports(8000, 8100)) == StreamAddress("10.0.0.7", 6001, None)
    assert asked == [], "labels and configuration leave nothing to ask"
    assert where(endpoint(1), None, Ports(8000, 8100)) == StreamAddress("10.0.0.7", 8000, 8100)
    assert where(endpoint(1), None, None) == StreamAddress("10.0.0.7", names.DEFAULT_KV_EVENTS_PORT + 1, None)
    assert where(endpoint(), None, Ports(0, 0)) is None
    assert len(asked) == 3


def test_before_the_answer_there_is_no_address() -> None:
    """Not even the convention's: its stream would be thrown away."""
    known = EventPorts(None, None, ask=lambda _: None)
    known.sync([endpoint()])
    assert known.address(endpoint()) is UNANSWERED
    known.told(A, Ports(8000, 0))
    known.sync([])
    known.sync([endpoint()])
    assert known.address(endpoint()) is UNANSWERED, "it came back, perhaps as another"


@pytest.mark.parametrize(
    ("events", "replay"), [("http", None), ("-1", None), ("0", None), ("70000", None), (None, "1e3"), ("5557", "70000")]
)
def test_a_label_that_names_no_port_is_refused(events: str | None, replay: str | None) -> None:
    """It is not taken for none."""
    with pytest.raises(BadPortError):
        EventPorts(None, None, ask=None).address(endpoint(events=events, replay=replay))
