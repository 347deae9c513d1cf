"""Blocks endpoints are about to compute because we sent them the request, until their events tell (spec/kv.md 8 rule 14).

Kept apart from what events confirmed, and forgotten after a time. A whole prompt is always speculated from its first
block on, and an expiry is only ever moved later, so at any time the live entries of an endpoint are closed under "the
block before": how far a chain is speculated is found by bisection, ten probes for eight thousand tokens.

Expired entries count as absent at once; `sweep` frees their memory. Used by `index` only, on the event loop; pure.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final

from epp.domain import BlockKey, EndpointId

MAX_BLOCKS: Final = 200_000
"""Blocks remembered, each as often as it was added: 25 MB, or two seconds of 1.6 million prompt tokens each. The oldest go first."""

_EXPIRED = float("-inf")


class Speculations:
    """Speculative blocks of all endpoints."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._until: dict[EndpointId, dict[BlockKey, float]] = {}
        self._added: deque[tuple[float, EndpointId, Sequence[BlockKey]]] = deque()
        """In order of arrival, which is the order of expiry as long as the TTL is constant."""
        self._blocks = 0
        """Blocks of all that is in `_added`."""

    def add(self, endpoint: EndpointId, chain: Sequence[BlockKey], until: float) -> None:
        """All blocks of a prompt, first to last."""
        if not chain:
            return
        entries = self._until.setdefault(endpoint, {})
        for key in chain:
            if entries.get(key, _EXPIRED) < until:
                entries[key] = until
        self._added.append((until, endpoint, chain))
        self._blocks += len(chain)
        while self._blocks > self._max_blocks:
            self._free_oldest()

    def __contains__(self, endpoint: EndpointId) -> bool:
        return endpoint in self._until

    def prefix(self, endpoint: EndpointId, chain: Sequence[BlockKey], now: float) -> int:
        """How many leading blocks of the chain are speculated for the endpoint and not expired."""
        entries = self._until.get(endpoint)
        if not entries or not chain or entries.get(chain[0], _EXPIRED) <= now:
            return 0
        return bisect_left(chain, 1, key=lambda key: entries.get(key, _EXPIRED) <= now)

    def forget(self, endpoint: EndpointId) -> None:
        """The endpoint restarted, cleared its cache or is gone."""
        self._until.pop(endpoint, None)

    def sweep(self, now: float, limit: int) -> int:
        """Free what has expired, about `limit` blocks at most; returns how many blocks were looked at."""
        seen = 0
        while self._added and self._added[0][0] <= now and seen < limit:
            seen += self._free_oldest()
        return seen

    def _free_oldest(self) -> int:
        """Forget the oldest chain, but for what a later one moved on; returns its length."""
        until, endpoint, chain = self._added.popleft()
        self._blocks -= len(chain)
        entries = self._until.get(endpoint, {})
        for key in chain:
            if entries.get(key, until + 1) <= until:
                del entries[key]
        if not entries:
            self._until.pop(endpoint, None)
        return len(chain)
