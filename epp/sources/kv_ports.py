"""Where an endpoint publishes its KV events: its labels, the configuration, its own word, or vLLM's convention, in this order.

Pure: `ports` reads an engine's answer to `GET /kv_event_sources` (vLLM from September 2026, spec/kv.md 1.3), `EventPorts` holds
the answers. Asking is `kv_asker`'s business. Used by `kv_events` on the event loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from epp import names
from epp.domain import Endpoint, EndpointId
from epp.sources.kv_messages import StreamAddress

# An engine that binds says so by these; with its own address it has bound a port the system chose. Any other host vLLM connects
# to, 0.0.0.0 included (spec/kv.md 1.2).
_ANY_HOST: Final = frozenset(("*", "::"))
_MAX_PORT: Final = 65_535


class BadPortError(ValueError):
    """A label that names no port."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Of one rank; 0: none."""

    events: int
    replay: int
    connects: bool = False
    """The engine publishes to an address that it connects to, ours perhaps."""


class Unanswered:
    """The engine has not been asked yet, or has not answered."""


UNANSWERED: Final = Unanswered()


class _Source(msgspec.Struct):
    """One rank's part of the answer: what of vLLM's KVEventsConfig says where events are to be had."""

    endpoint: str | None = None
    replay_endpoint: str | None = None
    enable_kv_cache_events: bool = True
    publisher: str | None = "zmq"


_ANSWER: Final = msgspec.json.Decoder(dict[str, _Source])


def ports(answer: bytes, endpoint: Endpoint) -> Ports:
    """What an engine says of the rank that is this endpoint; no ports where it publishes nothing, or connects to somebody.

    Raises ValueError for anything but such an answer.
    """
    by_rank = _ANSWER.decode(answer)
    source = by_rank.get(str(endpoint.rank))
    if source is None and len(by_rank) == 1:  # a pod of one rank may count from its own zero
        source = next(iter(by_rank.values()))
    if source is None or not source.enable_kv_cache_events or source.publisher != "zmq":
        return Ports(0, 0)
    events = _bound_port(source.endpoint, endpoint.address)
    connects = not events and (source.endpoint or "").startswith("tcp://")
    return Ports(events, _bound_port(source.replay_endpoint, endpoint.address), connects)


def _bound_port(url: str | None, own_address: str) -> int:
    """The port of a socket that the engine has bound; 0: it has none. Raises ValueError for what is no address."""
    if not url or not url.startswith("tcp://"):
        return 0
    parts = urlsplit(url)
    return (parts.port or 0) if parts.hostname in _ANY_HOST or parts.hostname == own_address else 0


class EventPorts:
    """The addresses of all streams."""

    def __init__(self, socket_port: int | None, replay_port: int | None, *, ask: Callable[[Sequence[Endpoint]], None] | None) -> None:
        """The configured base ports; None (replay: or 0): none configured, no replay.

        `ask` is given the endpoints that only an answer can place, each time they are listed; None: nobody is asked.
        """
        self._socket_port = socket_port
        self._replay_port = replay_port or 0
        self._ask = ask
        self._told: dict[EndpointId, Ports | None] = {}

    def sync(self, endpoints: Sequence[Endpoint]) -> None:
        """These are the endpoints now."""
        if self._ask is None or self._socket_port:
            return
        asked = [endpoint for endpoint in endpoints if names.KV_EVENTS_PORT_LABEL not in endpoint.labels]
        self._told = {endpoint.id: self._told[endpoint.id] for endpoint in asked if endpoint.id in self._told}
        self._ask(asked)

    def told(self, endpoint: EndpointId, ports: Ports | None) -> None:
        """An endpoint's answer; None: it knows no such question, or does not answer."""
        self._told[endpoint] = ports

    def address(self, endpoint: Endpoint) -> StreamAddress | Unanswered | None:
        """Where the endpoint publishes; None: nowhere. Raises BadPortError for a label that names no port."""
        port = _labelled(endpoint, names.KV_EVENTS_PORT_LABEL)
        if port == 0:
            raise BadPortError(names.KV_EVENTS_PORT_LABEL)
        replay = _labelled(endpoint, names.KV_REPLAY_PORT_LABEL)
        replay = _of_rank(self._replay_port, endpoint) if replay is None else replay
        if port is None and self._socket_port:
            port = _of_rank(self._socket_port, endpoint)
        if port is None and self._ask is not None:
            if endpoint.id not in self._told:
                return UNANSWERED
            told = self._told[endpoint.id]
            if told is not None:
                port, replay = told.events, replay or told.replay
        if port is None:
            port = _of_rank(names.DEFAULT_KV_EVENTS_PORT, endpoint)
        return StreamAddress(endpoint.address, port, replay or None) if port else None


def _labelled(endpoint: Endpoint, label: str) -> int | None:
    """The port of the endpoint's rank that a label gives; 0: none; None: it has no such label."""
    text = endpoint.labels.get(label)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise BadPortError(label)
    return _of_rank(int(text), endpoint)


def _of_rank(base: int, endpoint: Endpoint) -> int:
    """A data-parallel rank adds its index to the base port; 0: none."""
    port = base + endpoint.rank if base else 0
    if port > _MAX_PORT:
        raise BadPortError(f"{base} + rank {endpoint.rank}")
    return port
