"""What our names are of an engine's blocks, packed: 26 bytes an entry, of all engines together most of the index's memory.

A B-tree of 64-bit integers (LLBTree of BTrees): half a microsecond an access, which events can afford and lookups cannot, but no
objects, no empty slots, and no stall when it grows or shrinks. A dict takes 80 bytes with the integers in it, and twice that
where entries come and go, as in any full cache. Pure; used by `tiers`.
"""

from collections.abc import Iterator
from typing import Protocol, cast

from BTrees.LLBTree import LLBTree

from epp.domain import BlockKey, EngineHash


class Tree(Protocol):
    """As much of LLBTree as is used. Its length is not: counting takes a walk over all of it."""

    def insert(self, key: EngineHash, value: BlockKey, /) -> int:
        """1, or 0 where the key is there already, whose value then stays."""

    def get(self, key: EngineHash, /) -> BlockKey | None:
        """None where it is not there."""

    def pop(self, key: EngineHash, default: None = None, /) -> BlockKey | None:
        """Take it out; `default` where it was not there, KeyError without."""

    def __iter__(self) -> Iterator[EngineHash]: ...


def new_tree() -> Tree:
    """An empty one."""
    return cast("Tree", LLBTree())
