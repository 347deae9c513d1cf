"""A large dict in many small ones: growing a dict of 200,000 entries stalls the event loop for 10 ms, of millions for longer.

Keys spread over the shards by their low bits, so they must be evenly spread hashes, as `keys` makes them: even a hostile engine
cannot choose in which shard its blocks meet. Each shard grows by itself, so the longest stall is that of one. Pure; used by `tiers` and
`index`, which read `shards` themselves where a method call a block would be too dear.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=int)
_V = TypeVar("_V")


class Table(Generic[_K, _V]):
    """int to value."""

    __slots__ = ("mask", "shards")

    def __init__(self, shards: int) -> None:
        """`shards`: a power of two; each costs 64 bytes while it is empty."""
        self.shards: list[dict[_K, _V]] = [{} for _ in range(shards)]
        self.mask = shards - 1
        """`shards[key & mask]` is where a key belongs."""

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __contains__(self, key: _K) -> bool:
        return key in self.shards[key & self.mask]

    def __getitem__(self, key: _K) -> _V:
        return self.shards[key & self.mask][key]

    def __setitem__(self, key: _K, value: _V) -> None:
        self.shards[key & self.mask][key] = value

    def __delitem__(self, key: _K) -> None:
        del self.shards[key & self.mask][key]

    def get(self, key: _K) -> _V | None:
        """None where it is not there."""
        return self.shards[key & self.mask].get(key)

    def pop(self, key: _K) -> _V | None:
        """Take it out; None where it was not there."""
        return self.shards[key & self.mask].pop(key, None)

    def drain(self) -> Iterator[_V]:
        """Take out everything, one by one."""
        for shard in self.shards:
            while shard:
                yield shard.popitem()[1]
