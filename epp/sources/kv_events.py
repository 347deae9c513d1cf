"""KV events of every endpoint, from the wire into the index (spec/kv.md 1, 8; docs/architecture.md decision 5).

`sync` names the endpoints that should be listened to; streams open and close to match. The sockets live in a thread of
their own (`kv_streams`); what it decoded is applied here, on the event loop, in parts that take a few milliseconds at
most, and in order. So readers of the index always see whole parts and never wait.

Engines may also connect to us (`bind`); then `kv_named` tells who speaks. An endpoint heard over its own socket is not
heard a second time this way.

Ports: the endpoint's labels, then the configured ones, then 5557; a data-parallel rank adds its index to each.

Called by the composition root, which owns its life: `start`, `sync` as often as it likes, `stop`. All methods run on the
event loop.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from epp import names
from epp.domain import Endpoint, EndpointId
from epp.errors import ConfigError
from epp.kvcache.index import PrefixIndex
from epp.kvcache.sequence import Apply, Clear, Gap, StreamState
from epp.reporter import Reporter
from epp.sources.kv_bound import BOUND
from epp.sources.kv_messages import Delivery, Failed, Named, StateChanged, StreamAddress, Timing, Told, Unreachable
from epp.sources.kv_named import NamedPods, StreamKey
from epp.sources.kv_streams import StreamThread

# A loop callback applies deliveries for this long, which leaves room for the last of them within 5 ms.
SLICE_S: Final = 0.002
# Beyond this many deliveries waiting, the thread stops reading.
MAX_PENDING: Final = 1_000
# A replay that does not bring the truth either is not asked for again at once.
DISTRUST_S: Final = 60.0
_NEVER: Final = float("-inf")
TICK_S: Final = 1.0
# Stands in reports for engines that connected and are no endpoint of ours.
UNKNOWN_POD: Final = EndpointId("unknown")
# ZMQ's own default of 1,023 is used up by 340 streams of three sockets each; this is the most it can be told.
MAX_SOCKETS: Final = 65_535

# An engine that goes away while it is asked for its past has none worth waiting for.
_SETTLED_STATES: Final = frozenset((StreamState.LIVE, StreamState.PARTIAL, StreamState.LOST))
_HEARD_STATES: Final = frozenset((StreamState.REPLAYING, StreamState.LIVE, StreamState.PARTIAL))
_DEFAULT_TIMING: Final = Timing()


class _BadPortError(ValueError):
    """A label that names no port."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A stream that should be open."""

    token: int
    serving_port: int
    """With another one it is another engine, even if it publishes where the old one did."""
    address: StreamAddress | None
    """None: we do not connect to it, or its labels name no port."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is known of the fleet's caches after a start."""

    told: int
    """Endpoints that have told what they hold, or cannot."""
    endpoints: int
    blocks: int
    without_replay: Sequence[EndpointId]
    """Endpoints without a replay socket: what they held before is not known."""


class KvEventSource:
    """Keeps the index up to date with what the engines publish."""

    def __init__(
        self,
        index: PrefixIndex,
        reporter: Reporter,
        *,
        topic_filter: str,
        socket_port: int | None,
        replay_port: int | None,
        clock: Callable[[], float],
        timing: Timing = _DEFAULT_TIMING,
        max_sockets: int = MAX_SOCKETS,
        bind: str = "",
        discover: bool = True,
    ) -> None:
        """`bind`: where engines connect to us, as ZMQ writes it; empty: nowhere. `discover`: connect to each endpoint.

        `socket_port`, `replay_port`: base ports of endpoints without labels; None (replay: or 0): 5557, no replay.

        `topic_filter`: a message counts if its topic begins with it or is empty, as vLLM's is by default.
        """
        self.settled = asyncio.Event()
        """Set once the streams of the first `sync` are live, replayed, or given up; stays set."""
        self._index = index
        self._reporter = reporter
        self._socket_port = socket_port or names.DEFAULT_KV_EVENTS_PORT
        self._replay_port = replay_port or 0
        self._clock = clock
        self._discover = discover
        self._bind = bind
        self._pods = NamedPods()
        self._distrusted: dict[EndpointId, float] = {}
        """When what an endpoint said was last forgotten for another witness's word."""
        self._connected: set[StreamKey] = set()
        """Streams heard over a connection of ours."""
        self._named: set[StreamKey] = set()
        """Streams heard over a connection of theirs."""
        prefix = topic_filter.encode()
        self._tokens = itertools.count()
        self._open: dict[StreamKey, _Open] = {}
        self._keys: dict[int, StreamKey] = {}
        """Stream of each token; deliveries of closed ones find none."""
        self._unsettled: set[int] | None = None
        """Tokens `settled` waits for; None before the first sync."""
        self._pending: deque[tuple[int, Delivery]] = deque()
        self._draining = False
        self._tick: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._thread = StreamThread(
            deliver=self._deliver,
            ended=self._thread_ended,
            behind=lambda: len(self._pending) >= MAX_PENDING,
            accepts=lambda topic: not topic or topic.startswith(prefix),
            clock=clock,
            timing=timing,
            max_sockets=max_sockets,
            bind=bind,
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; `loop` is where the index lives. Raises ConfigError where `bind` cannot be bound."""
        self._loop = loop
        try:
            self._thread.start()
        except zmq.ZMQError as error:
            raise ConfigError(
                f"kvEventsConfig.zmqEndpoint {self._bind!r}: cannot be bound ({error.strerror}); expected tcp://*:PORT with a free port"
            ) from error
        self._ended = loop.create_future()
        self._tick = loop.call_later(TICK_S, self._on_tick)

    @property
    def bound_url(self) -> str:
        """Where engines connect to, with the port that was chosen; empty: nowhere."""
        return self._thread.bound_url

    def sync(self, endpoints: Sequence[Endpoint]) -> None:
        """Listen to exactly these. An endpoint gone is forgotten at once; one at another address starts anew."""
        wanted = {(endpoint.id, endpoint.rank): endpoint for endpoint in endpoints}
        for key in [key for key in self._open if key not in wanted]:
            self._close(key)
            if not any(endpoint_id == key[0] for endpoint_id, _ in wanted):
                self._index.remove(key[0])
        for key, endpoint in wanted.items():
            address = self._address(endpoint) if self._discover else None
            current = self._open.get(key)
            if current is not None and (current.address, current.serving_port) != (address, endpoint.port):
                self._close(key)
                current = None
            if current is None:
                self._begin(key, endpoint.port, address)
        if self._unsettled is None:
            self._unsettled = {stream.token for stream in self._open.values() if stream.address is not None}
        self._check_settled()
        if self._bind:
            for key, told in self._pods.sync(endpoints):
                self._hear_named(key, told)

    def learnt(self) -> Learnt:
        """How far the caches of the listed endpoints are known."""
        endpoints = {endpoint for endpoint, _ in self._open}
        waiting = {self._keys[token][0] for token in self._unsettled or ()}
        blind = {key[0] for key, opened in self._open.items() if opened.address is None or opened.address.replay_port is None}
        return Learnt(len(endpoints - waiting), len(endpoints), sum(map(self._index.blocks, endpoints)), sorted(blind))

    def reconcile(self, endpoint: EndpointId, num_blocks: int) -> None:
        """The engine says how many blocks it has (cache_config_info): one that is taken to hold more has lost some of which nobody told us.

        Then what it said is forgotten, and learnt anew where a replay can tell.
        """
        now = self._clock()
        if self._index.blocks(endpoint) <= num_blocks or now - self._distrusted.get(endpoint, _NEVER) < DISTRUST_S:
            return
        self._distrusted[endpoint] = now
        self._reporter.kv_event_error(endpoint, "more_blocks_than_the_engine_has")
        for key, opened in self._open.items():
            if key[0] == endpoint:
                self._thread.distrust(opened.token)

    async def run(self) -> None:
        """Returns once `stop` has ended the thread. Raises RuntimeError where the thread failed: the index would stand still, unnoticed."""
        assert self._ended is not None, "start() comes first"
        await asyncio.shield(self._ended)
        if self._failure is not None:
            raise RuntimeError("the thread that receives KV events failed") from self._failure

    async def stop(self) -> None:
        """Close all streams and end the thread; the index keeps what it knows."""
        if self._tick is not None:
            self._tick.cancel()
        if self._ended is not None:
            self._thread.stop()
            await self._ended
            self._thread.join()

    # --- streams ---------------------------------------------------------------------------------------------
    def _begin(self, key: StreamKey, serving_port: int, address: StreamAddress | None) -> None:
        token = next(self._tokens)
        self._open[key] = _Open(token, serving_port, address)
        self._keys[token] = key
        if address is None:
            if not self._discover:
                return
            self._reporter.kv_event_error(key[0], "port_label")
        else:
            self._thread.open(token, address)

    def _close(self, key: StreamKey) -> None:
        token = self._open.pop(key).token
        del self._keys[token]
        if self._unsettled is not None:
            self._unsettled.discard(token)
        self._thread.close(token)
        self._connected.discard(key)
        self._named.discard(key)
        self._distrusted.pop(key[0], None)
        self._index.clear(*key)

    def _address(self, endpoint: Endpoint) -> StreamAddress | None:
        """Where the endpoint publishes; None where its labels name no port."""
        try:
            port = _port(endpoint, names.KV_EVENTS_PORT_LABEL, self._socket_port)
            replay_port = _port(endpoint, names.KV_REPLAY_PORT_LABEL, self._replay_port)
        except _BadPortError:
            return None
        return StreamAddress(endpoint.address, port, replay_port or None) if port else None

    def _check_settled(self) -> None:
        if self._unsettled is not None and not self._unsettled:
            self.settled.set()

    # --- from the thread -------------------------------------------------------------------------------------
    def _deliver(self, token: int, delivery: Delivery) -> None:
        """On the stream thread."""
        self._pending.append((token, delivery))
        if not self._draining:
            self._draining = True
            self._loop.call_soon_threadsafe(self._drain)

    def _thread_ended(self, failure: Exception | None) -> None:
        """On the stream thread, last of all."""
        self._loop.call_soon_threadsafe(self._on_thread_ended, failure)

    def _on_thread_ended(self, failure: Exception | None) -> None:
        assert self._ended is not None
        self._failure = failure
        self._ended.set_result(None)

    # --- on the event loop -----------------------------------------------------------------------------------
    def _drain(self) -> None:
        """Apply what waits, for one slice of time."""
        until = self._clock() + SLICE_S
        # Cleared before looking: what the thread adds after the last look rings again.
        self._draining = False
        while self._pending:
            token, delivery = self._pending.popleft()
            key = self._keys.get(token)
            if isinstance(delivery, Named):
                self._on_named(delivery)
            elif key is not None:
                self._handle(token, key, delivery)
            elif token == BOUND and isinstance(delivery, Failed):
                self._reporter.kv_event_error(UNKNOWN_POD, delivery.reason)
            if self._pending and self._clock() >= until:
                self._draining = True
                self._loop.call_soon(self._drain)
                return

    def _handle(self, token: int, key: StreamKey, told: Told) -> None:
        match told:
            case StateChanged(state):
                if state in _HEARD_STATES:
                    self._connected.add(key)
                    if key in self._named:  # what it said the other way round would count twice
                        self._named.discard(key)
                        self._index.clear(*key)
                else:
                    self._connected.discard(key)
                if state in _SETTLED_STATES:
                    self._settle(token)
            case Unreachable():
                self._settle(token)
        self._apply(key, told)

    def _on_named(self, named: Named) -> None:
        key = self._pods.find(named.pod, named.rank)
        if key is not None:
            self._hear_named(key, named.told)
        elif not self._pods.keep(named):
            self._reporter.kv_event_error(UNKNOWN_POD, "unknown_pod")

    def _hear_named(self, key: StreamKey, told: Told) -> None:
        """What an engine that connected to us said, unless we hear it over a connection of ours too."""
        if key in self._connected:
            self._reporter.kv_event_error(key[0], "both_directions")
            return
        self._named.add(key)
        self._apply(key, told)

    def _apply(self, key: StreamKey, told: Told) -> None:
        endpoint, rank = key
        match told:
            case Apply(batch):
                self._index.apply(endpoint, rank, batch)
            case Clear():
                self._index.clear(endpoint, rank)
            case Gap(missing):
                self._reporter.kv_gap(endpoint, missing)
            case Failed(reason, count):
                for _ in range(count):
                    self._reporter.kv_event_error(endpoint, reason)
            case StateChanged(state):
                self._reporter.kv_stream_state(endpoint, rank, state.value)

    def _settle(self, token: int) -> None:
        if self._unsettled:
            self._unsettled.discard(token)
            self._check_settled()

    def _on_tick(self) -> None:
        for endpoint in {endpoint for endpoint, _ in self._open}:
            self._reporter.index_size(endpoint, self._index.blocks(endpoint))
        self._sweep()
        self._tick = self._loop.call_later(TICK_S, self._on_tick)

    def _sweep(self) -> None:
        if self._index.sweep(self._clock()):
            self._loop.call_soon(self._sweep)


def _port(endpoint: Endpoint, label: str, configured: int) -> int:
    """The port of the endpoint's rank; 0: none."""
    text = endpoint.labels.get(label)
    if text is not None and not (text.isascii() and text.isdigit()):
        raise _BadPortError(label)
    base = configured if text is None else int(text)
    port = base + endpoint.rank if base else 0
    if port > 65535:
        raise _BadPortError(label)
    return port
