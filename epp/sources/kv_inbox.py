"""What came of the streams, on its way from the thread that receives it to the event loop that applies it.

In order, and bounded in bytes of what was decoded, in all and for each stream: with more than that on its way the thread stops
reading, all streams or this one, so that what one says waits for little of what another does. A loop callback takes deliveries
for a slice of time, so that requests wait for none of it.

`put`, `is_full`, `has_enough_of` and `forget` are the thread's; everything else happens on the loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from epp.sources.kv_messages import Delivery, size_of

# A loop callback takes deliveries for this long, which leaves room for the last of them within 5 ms.
SLICE_S: Final = 0.002
# About 80,000 blocks, which are applied in a quarter of a second.
MAX_BYTES: Final = 8 << 20
# A twentieth of that time.
MAX_STREAM_BYTES: Final = 512 << 10


class _Share:
    """Bytes of one stream so far; each number is changed by one thread alone."""

    __slots__ = ("put", "taken")

    def __init__(self) -> None:
        self.put = self.taken = 0


class Inbox:
    """Deliveries with the token of their stream."""

    def __init__(self, handle: Callable[[int, Delivery], None], clock: Callable[[], float]) -> None:
        self._handle = handle
        self._clock = clock
        self._waiting: deque[tuple[int, Delivery, int, _Share]] = deque()
        self._shares: dict[int, _Share] = {}
        self._ringing = False
        """A drain is scheduled or under way. One at a time, or what comes during each schedules more of them, and a turn of the loop has no end."""
        self._scheduled = False
        """The drain that goes on with what the last one left is; the loop alone changes it."""
        self._put = self._taken = 0
        """Bytes so far: each is counted by one thread alone."""

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, before anything is put: deliveries are handled on this loop."""
        self._loop = loop

    def put(self, token: int, delivery: Delivery) -> None:
        """Leave it for the loop; does not block."""
        size = size_of(delivery)
        share = self._shares.get(token)
        if share is None:
            share = self._shares[token] = _Share()
        share.put += size
        self._put += size
        self._waiting.append((token, delivery, size, share))
        if not self._ringing:
            self._ringing = True
            self._loop.call_soon_threadsafe(self._on_ring)

    def is_full(self) -> bool:
        """The loop has more than enough to apply."""
        return self._put - self._taken >= MAX_BYTES

    def has_enough_of(self, token: int) -> bool:
        """As much as one stream may have on its way."""
        share = self._shares.get(token)
        return share is not None and share.put - share.taken >= MAX_STREAM_BYTES

    def forget(self, token: int) -> None:
        """Its stream delivers no more."""
        self._shares.pop(token, None)

    def _on_ring(self) -> None:
        # A drain may see what this ring was for before it stops, and go on: the one it scheduled sees whatever else was put.
        if not self._scheduled:
            self._drain()

    def _drain(self) -> None:
        """Handle what waits, for one slice of time."""
        self._scheduled = False
        more = True  # also where something could not be handled, which costs itself
        try:
            more = self._handle_some(self._clock() + SLICE_S)
        finally:
            if more:
                self._scheduled = True
                self._loop.call_soon(self._drain)

    def _handle_some(self, until: float) -> bool:
        """Until then; whether there may be more."""
        while True:
            while self._waiting:
                token, delivery, size, share = self._waiting.popleft()
                share.taken += size
                self._taken += size
                self._handle(token, delivery)
                if self._clock() >= until:
                    return True
            self._ringing = False
            # What the thread added before that, it did not ring for.
            if self._ringing or not self._waiting:
                return False
            self._ringing = True
