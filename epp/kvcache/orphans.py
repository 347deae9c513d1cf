"""Stored blocks whose parent the stream has not named: they wait, since each event carries only its own span's tokens.

A late joiner meets them when the head of the replay buffer is gone, anybody after a loss (spec/kv.md 8 rule 5). A waiting
block is adopted when its parent arrives, and leaves when the engine removes it, so that no ghost comes of it. Bounded
by blocks; the oldest give way. Used by `tiers`, one instance a cache group and medium; pure.
"""

from dataclasses import dataclass

from epp.domain import EngineHash
from epp.kvcache.keys import Extras


@dataclass(slots=True)
class Orphan:
    """One waiting block."""

    hash: EngineHash
    parent: EngineHash
    tokens: bytes
    extras: Extras
    copies: int = 1
    """Physical copies the engine holds."""


class Orphans:
    """The waiting blocks of one cache group in one medium."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_hash: dict[EngineHash, Orphan] = {}
        self._children: dict[EngineHash, set[EngineHash]] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def add(self, orphan: Orphan) -> bool:
        """Keep it; False: the oldest one had to go for it."""
        known = self._by_hash.get(orphan.hash)
        if known is not None:
            known.copies += 1
            return True
        self._by_hash[orphan.hash] = orphan
        self._children.setdefault(orphan.parent, set()).add(orphan.hash)
        if len(self._by_hash) <= self._limit:
            return True
        self._drop(next(iter(self._by_hash)))
        return False

    def removed(self, block: EngineHash) -> None:
        """The engine dropped one copy of the block."""
        orphan = self._by_hash.get(block)
        if orphan is None:
            return
        orphan.copies -= 1
        if orphan.copies == 0:
            self._drop(block)

    def adopt(self, parent: EngineHash) -> list[Orphan]:
        """The blocks that waited for this one; they no longer do."""
        children = self._children.get(parent)
        return [self._drop(block) for block in list(children)] if children else []

    def _drop(self, block: EngineHash) -> Orphan:
        orphan = self._by_hash.pop(block)
        siblings = self._children[orphan.parent]
        siblings.discard(block)
        if not siblings:
            del self._children[orphan.parent]
        return orphan
