"""KV events of every endpoint, from the wire into the index (spec/kv.md 1, 8; docs/architecture.md decision 5).

`sync` names the endpoints that should be listened to; streams open and close to match. The sockets live in a thread of
their own (`kv_streams`); what it decoded comes by way of an `Inbox` and is applied here, on the event loop, in parts that
take a few milliseconds at most, and in order. So readers of the index always see whole parts and never wait.

Engines may also connect to us (`bind`); then `kv_named` tells who speaks. An endpoint heard over its own socket is not
heard a second time this way.

Where an endpoint publishes is decided in `kv_ports`; one that has to be asked first is listened to when it has answered (`told`).

Called by the composition root, which owns its life: `start`, `sync` as often as it likes, `stop`. All methods run on the
event loop.
"""

import asyncio
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from epp.domain import Endpoint, EndpointId, EndpointMetrics
from epp.errors import ConfigError
from epp.kvcache.index import PrefixIndex
from epp.kvcache.sequence import Apply, Clear, Gap, StreamState
from epp.reporter import Reporter
from epp.sources.kv_bound import BOUND
from epp.sources.kv_inbox import Inbox
from epp.sources.kv_messages import Delivery, Failed, Named, StateChanged, StreamAddress, Timing, Told, Unreachable
from epp.sources.kv_named import NamedPods, StreamKey
from epp.sources.kv_ports import BadPortError, EventPorts, Ports, Unanswered
from epp.sources.kv_streams import StreamThread

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


@dataclass(frozen=True, slots=True)
class _Open:
    """A stream that should be open."""

    token: int
    serving_port: int
    """With another one it is another engine, even if it publishes where the old one did."""
    address: StreamAddress | Unanswered | None
    """None: we do not connect to it, or there is no port to connect to."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is known of the fleet's caches after a start."""

    told: int
    """Endpoints that have told what they hold."""
    endpoints: int
    blocks: int
    unheard: Sequence[EndpointId]
    """Endpoints that were not reached, or publish nothing: nothing is known of what they hold."""
    without_replay: Sequence[EndpointId]
    """Endpoints that were reached, without a replay socket: what they held before is not known."""


class KvEventSource:
    """Keeps the index up to date with what the engines publish."""

    def __init__(
        self,
        index: PrefixIndex,
        reporter: Reporter,
        *,
        topic_filter: str,
        ports: EventPorts,
        clock: Callable[[], float],
        timing: Timing = _DEFAULT_TIMING,
        max_sockets: int = MAX_SOCKETS,
        bind: str = "",
        discover: bool = True,
        lost: Callable[[EndpointId], None] = lambda _: None,
    ) -> None:
        """`bind`: where engines connect to us, as ZMQ writes it; empty: nowhere. `discover`: connect to each endpoint.

        `lost` is called when the connection to an endpoint's stream is.

        `topic_filter`: a message counts if its topic begins with it or is empty, as vLLM's is by default.
        """
        self.settled = asyncio.Event()
        """Set once the streams of the first `sync` are live, replayed, or given up; stays set."""
        self._index = index
        self._reporter = reporter
        self._ports = ports
        self._lost = lost
        self._clock = clock
        self._discover = discover
        self._bind = bind
        self._pods = NamedPods()
        self._distrusted: dict[EndpointId, float] = {}
        """When what an endpoint said was last forgotten for another witness's word."""
        self._queries: dict[EndpointId, float] = {}
        """What each engine's counter of prefix-cache queries last said."""
        self._connected: set[StreamKey] = set()
        """Streams heard over a connection of ours."""
        self._named: dict[StreamKey, set[int]] = {}
        """Streams heard over a connection of theirs, and the ranks that speak there: behind one port several may."""
        prefix = topic_filter.encode()
        self._tokens = itertools.count()
        self._open: dict[StreamKey, _Open] = {}
        self._keys: dict[int, StreamKey] = {}
        """Stream of each token; deliveries of closed ones find none."""
        self._unsettled: set[int] | None = None
        """Tokens `settled` waits for; None before the first sync."""
        self._inbox = Inbox(self._handle, clock)
        self._tick: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._thread = StreamThread(
            deliver=self._inbox.put,
            ended=self._thread_ended,
            behind=self._inbox.is_full,
            has_enough_of=self._inbox.has_enough_of,
            forget=self._inbox.forget,
            accepts=lambda topic: not topic or topic.startswith(prefix),
            clock=clock,
            timing=timing,
            max_sockets=max_sockets,
            bind=bind,
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; `loop` is where the index lives. Raises ConfigError where `bind` cannot be bound."""
        self._loop = loop
        self._inbox.open(loop)
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
        if self._discover:
            self._ports.sync(endpoints)
        for key, endpoint in wanted.items():
            self._place(key, endpoint)
        if self._unsettled is None:
            self._unsettled = {stream.token for stream in self._open.values() if stream.address is not None}
        self._check_settled()
        if self._bind:
            for key, named in self._pods.sync(endpoints):
                self._hear_named(key, named)

    def told(self, endpoint: Endpoint, ports: Ports | None) -> None:
        """Where an endpoint that was asked publishes; None: it does not say."""
        self._ports.told(endpoint.id, ports)
        key = endpoint.id, endpoint.rank
        if key in self._open:
            self._place(key, endpoint)
            self._check_settled()

    def learnt(self) -> Learnt:
        """How far the caches of the listed endpoints are known."""
        endpoints = {endpoint for endpoint, _ in self._open}
        waiting = {self._keys[token][0] for token in self._unsettled or ()}
        heard = {endpoint for endpoint, _ in self._connected | self._named.keys()}
        blind = {key[0] for key, opened in self._open.items() if not (isinstance(at := opened.address, StreamAddress) and at.replay_port)}
        return Learnt(
            told=len(heard - waiting - blind),
            endpoints=len(endpoints),
            blocks=sum(map(self._index.blocks, endpoints)),
            unheard=sorted(endpoints - heard),
            without_replay=sorted(blind & heard),
        )

    def reconcile(self, endpoint: EndpointId, metrics: EndpointMetrics) -> None:
        """What an engine's metrics say against what its events said (spec/kv.md 8, rule 6).

        One that sleeps holds nothing, whether or not it said so. One of which a rank is taken to hold more blocks than it has, or whose
        counters went back because it is a new process, has lost some of which nobody told us: what it said is forgotten, and
        learnt anew where a replay can tell.
        """
        queries, before = metrics.prefix_queries, self._queries.get(endpoint)
        if queries is not None:
            self._queries[endpoint] = queries
        ranks = self._index.gpu_blocks(endpoint)
        if not any(ranks.values()):
            return
        if metrics.asleep:
            self._reporter.kv_event_error(endpoint, "the_engine_sleeps")
            for key in self._keys_of(endpoint):
                self._clear(key)
        elif metrics.num_blocks and max(ranks.values()) > metrics.num_blocks:
            too_many = [rank for rank, blocks in ranks.items() if blocks > metrics.num_blocks]
            self.distrust(endpoint, "more_blocks_than_the_engine_has", too_many)
        elif queries is not None and before is not None and queries < before:
            self.distrust(endpoint, "the_engine_began_anew")

    def distrust(self, endpoint: EndpointId, reason: str, ranks: Collection[int] | None = None) -> None:
        """Another witness contradicts what the endpoint's events said: forget it, and learn it anew where a replay can tell. Seldom.

        `ranks`: those that are contradicted; None: all.
        """
        now = self._clock()
        if now - self._distrusted.get(endpoint, _NEVER) < DISTRUST_S:
            return
        self._distrusted[endpoint] = now
        self._reporter.kv_event_error(endpoint, reason)
        for key in self._keys_of(endpoint):
            named = self._named.get(key, set())
            doubted = named.union((key[1],))
            if ranks is not None:
                doubted.intersection_update(ranks)
            if named:  # they connected to us, and have nothing to replay
                for rank in doubted:
                    self._index.clear(endpoint, rank)
            if key[1] in doubted:
                self._thread.distrust(self._open[key].token)

    def _keys_of(self, endpoint: EndpointId) -> list[StreamKey]:
        return [key for key in self._open if key[0] == endpoint]

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
    def _place(self, key: StreamKey, endpoint: Endpoint) -> None:
        """Listen where the endpoint publishes by what is known now."""
        address, bad = self._address(endpoint) if self._discover else (None, False)
        current = self._open.get(key)
        waits = False
        if current is not None:
            if (current.address, current.serving_port) == (address, endpoint.port):
                return
            waits = self._unsettled is not None and current.token in self._unsettled
            # What it said over a connection of its own does not depend on where we would connect to.
            self._close(key, keep=key in self._named and current.serving_port == endpoint.port)
        if bad:
            self._reporter.kv_event_error(key[0], "port_label")
        token = next(self._tokens)
        self._open[key] = _Open(token, endpoint.port, address)
        self._keys[token] = key
        if isinstance(address, StreamAddress):
            self._thread.open(token, address)
        if waits and address is not None and self._unsettled is not None:
            self._unsettled.add(token)

    def _address(self, endpoint: Endpoint) -> tuple[StreamAddress | Unanswered | None, bool]:
        """Where the endpoint publishes, and whether its labels name no port."""
        try:
            return self._ports.address(endpoint), False
        except BadPortError:
            return None, True

    def _close(self, key: StreamKey, *, keep: bool = False) -> None:
        """End the stream; `keep`: not what is known of the engine."""
        token = self._open.pop(key).token
        del self._keys[token]
        if self._unsettled is not None:
            self._unsettled.discard(token)
        self._thread.close(token)
        if keep:
            return
        self._connected.discard(key)
        self._distrusted.pop(key[0], None)
        self._queries.pop(key[0], None)
        self._clear(key)
        self._named.pop(key, None)

    def _clear(self, key: StreamKey) -> None:
        """Forget what was heard of the engine, either way."""
        for rank in self._named.get(key, set()).union((key[1],)):
            self._index.clear(key[0], rank)

    def _check_settled(self) -> None:
        if self._unsettled is not None and not self._unsettled:
            self.settled.set()

    # --- from the thread -------------------------------------------------------------------------------------
    def _thread_ended(self, failure: Exception | None) -> None:
        """On the stream thread, last of all."""
        self._loop.call_soon_threadsafe(self._on_thread_ended, failure)

    def _on_thread_ended(self, failure: Exception | None) -> None:
        assert self._ended is not None
        self._failure = failure
        self._ended.set_result(None)

    # --- on the event loop -----------------------------------------------------------------------------------
    def _handle(self, token: int, delivery: Delivery) -> None:
        key = self._keys.get(token)
        if isinstance(delivery, Named):
            self._on_named(delivery)
        elif key is not None:
            self._on_told(token, key, delivery)
        elif token == BOUND and isinstance(delivery, Failed):
            self._reporter.kv_event_error(UNKNOWN_POD, delivery.reason)

    def _on_told(self, token: int, key: StreamKey, told: Told) -> None:
        match told:
            case StateChanged(state):
                if state in _HEARD_STATES:
                    self._connected.add(key)
                    if key in self._named:  # what it said the other way round would count twice
                        self._clear(key)
                        del self._named[key]
                else:
                    self._connected.discard(key)
                if state is StreamState.LOST:
                    self._lost(key[0])
                if state in _SETTLED_STATES:
                    self._settle(token)
            case Unreachable():
                self._settle(token)
        self._apply(key, told)

    def _on_named(self, named: Named) -> None:
        key = self._pods.find(named.pod, named.rank)
        if key is not None:
            self._hear_named(key, named)
        elif not self._pods.keep(named):
            self._reporter.kv_event_error(UNKNOWN_POD, "unknown_pod")

    def _hear_named(self, key: StreamKey, named: Named) -> None:
        """What an engine that connected to us said, unless we hear it over a connection of ours too."""
        if key in self._connected:
            self._reporter.kv_event_error(key[0], "both_directions")
            return
        self._named.setdefault(key, set()).add(named.rank)
        self._apply((key[0], named.rank), named.told)

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
