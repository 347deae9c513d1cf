"""A large dict in many small ones: growing a dict of 200,000 entries stalls the event loop for 10 ms, of millions for longer.

Keys spread over the shards by their low bits, so they must be evenly spread hashes, as `keys` makes them: even a hostile engine
cannot choose in which shard its blocks meet. Each shard grows by itself, so the longest stall is that of one; and as they are
of four sizes, some are nearly full whenever others have just doubled. Where entries come and go, CPython gives a dict two to
four times the room it needs; `tighten` takes that back. Pure; used by `tiers` and `index`, which read `shards` themselves where a
method call a block would be too dear.
"""

import sys
from typing import Final, Generic, TypeVar

_K = TypeVar("_K", bound=int)
_V = TypeVar("_V")

# How many places a shard takes: they double at numbers of entries that are evenly apart.
_WIDTHS: Final = (4, 5, 6, 7)
# A dict that only grew takes 27 to 54 bytes an entry, and some for itself.
_TIGHT: Final = 56
_EMPTY: Final = 256
# Entries that are copied while one block is freed.
_COPIED_FOR_ONE: Final = 8


class Table(Generic[_K, _V]):
    """int to value."""

    __slots__ = ("_next", "_spans", "mask", "shards")

    def __init__(self, places: int) -> None:
        """`places`: a power of two; there is a shard, which costs 64 bytes while it is empty, for each 5.5 of them."""
        self.shards: list[dict[_K, _V]] = []
        self.mask = places - 1
        """`shards[key & mask]` is where a key belongs."""
        self._spans: list[range] = []
        """The places of each shard."""
        self._next = 0
        """The shard that `tighten` looks at next."""
        while (start := len(self.shards)) < places:
            span = range(start, min(start + _WIDTHS[len(self._spans) % len(_WIDTHS)], places))
            self._spans.append(span)
            self.shards += [{}] * len(span)

    def get(self, key: _K) -> _V | None:
        """None where it is not there."""
        return self.shards[key & self.mask].get(key)

    def __getitem__(self, key: _K) -> _V:
        return self.shards[key & self.mask][key]

    def __setitem__(self, key: _K, value: _V) -> None:
        self.shards[key & self.mask][key] = value

    def __delitem__(self, key: _K) -> None:
        del self.shards[key & self.mask][key]

    def tighten(self, shards: int, limit: int) -> int:
        """Look at the next `shards`, and make those anew that take much more room than they need; ends at about `limit`.

        Returns what it took, counted in blocks that could have been freed meanwhile; 0 where there was nothing to do.
        """
        spent = 0
        for _ in range(shards):
            if spent >= limit:
                break
            span = self._spans[self._next]
            shard = self.shards[span.start]
            if sys.getsizeof(shard) > _TIGHT * len(shard) + _EMPTY:
                self.shards[span.start : span.stop] = [dict(shard)] * len(span)
                spent += 1 + len(shard) // _COPIED_FOR_ONE
            self._next = (self._next + 1) % len(self._spans)
        return spent
