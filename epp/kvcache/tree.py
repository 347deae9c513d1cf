"""Our names of an engine's blocks, by its own: the larger part of the index, so packed into 26 to 30 bytes an entry.

A B-tree of 64-bit integers (LLBTree of BTrees): half a microsecond an access, which events can afford and lookups cannot, but no
objects, no empty slots, and no stall when it grows or shrinks. A dict takes 80 bytes with its keys, and up to 140 where
entries come and go, as in any full cache. Pure; used by `tiers`.
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

    def pop(self, key: EngineHash, default: None, /) -> BlockKey | None:
        """Take it out; None where it was not there."""

    def __iter__(self) -> Iterator[EngineHash]: ...


def new_tree() -> Tree:
    """An empty one."""
    return cast("Tree", LLBTree())
