"""Which endpoint an engine that connected to us is (spec/deploy.md 1.9), and what it said before that was known.

A topic names a pod by IP, with or without the serving port. With a port the endpoint is the one that serves there; without,
the one at this address whose rank is the batch's, or the only one at this address, which may have ranks that no endpoint
stands for. Engines speak before discovery lists them: what they say waits, bounded; the oldest gives way.

Pure; one instance, used by `kv_events` on the event loop.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from epp.domain import Endpoint, EndpointId
from epp.kvcache.sequence import Clear
from epp.sources.kv_messages import Named, size_of

StreamKey = tuple[EndpointId, int]
"""An endpoint and its data-parallel rank."""

# Of all pods together.
MAX_WAITING_BYTES: Final = 16 << 20


class NamedPods:
    """The names engines may give themselves."""

    def __init__(self) -> None:
        self._by_host_port: dict[str, StreamKey] = {}
        self._by_address: dict[str, list[StreamKey]] = {}
        self._waiting: OrderedDict[tuple[str, int], list[Named]] = OrderedDict()
        self._held = 0
        """Bytes that wait."""

    def sync(self, endpoints: Iterable[Endpoint]) -> list[tuple[StreamKey, Named]]:
        """These are the endpoints now. Returns what waited for one of them, in order."""
        self._by_host_port.clear()
        self._by_address.clear()
        for endpoint in endpoints:
            key = endpoint.id, endpoint.rank
            self._by_host_port[endpoint.host_port] = key
            self._by_address.setdefault(endpoint.address, []).append(key)
        found: list[tuple[StreamKey, Named]] = []
        for name in list(self._waiting):
            key_now = self.find(*name)
            if key_now is not None:
                named = self._waiting.pop(name)
                self._held -= sum(map(size_of, named))
                found += [(key_now, each) for each in named]
        return found

    def find(self, pod: str, rank: int) -> StreamKey | None:
        """The endpoint that calls itself so; None: not listed, or more than one could be meant."""
        exact = self._by_host_port.get(pod)
        if exact is not None:
            return exact
        keys = self._by_address.get(pod.strip("[]"), [])
        same_rank = [key for key in keys if key[1] == rank]
        candidates = same_rank or keys
        return candidates[0] if len(candidates) == 1 else None

    def keep(self, named: Named) -> bool:
        """Nobody knows this pod yet: keep what it said. False: something older had to go."""
        name = named.pod, named.rank
        waiting = self._waiting.setdefault(name, [])
        if isinstance(named.told, Clear):
            self._held -= sum(map(size_of, waiting))
            waiting.clear()
        waiting.append(named)
        self._held += size_of(named)
        kept = self._held <= MAX_WAITING_BYTES
        while self._held > MAX_WAITING_BYTES:
            _, oldest = self._waiting.popitem(last=False)
            self._held -= sum(map(size_of, oldest))
        return kept
