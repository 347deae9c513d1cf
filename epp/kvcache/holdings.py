"""What one (endpoint, data-parallel rank) holds, as its events say it: which of them count, and under which of our keys.

An engine keeps its blocks in cache groups, which share hashes (spec/kv.md 1.9-1.11). Only groups that attend to the whole
prompt are followed: of known full-attention kind, or of none the engine names and no span of theirs leaves blocks out. Of several
known ones all must hold a prefix; of several unnamed ones the best stands for it. Windows and states of other groups are
not looked at, so for hybrid models the result is an upper bound. Removals name only a group, so what a group is, is remembered.

Blocks outside the GPU count in tiers of their own. Offloaders may name them by hash alone; then another medium has, or lately
had, the tokens (1.14). A smaller block than its group's is a partial one, and counts when it is whole.

Pure; one instance a stream, used by `index`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from epp.domain import GPU, BlockKey, EngineHash
from epp.kvcache.events import BlockRemoved, BlockStored
from epp.kvcache.keys import NO_EXTRAS, TOKEN_BYTES, chain_keys, root_key
from epp.kvcache.orphans import Orphan
from epp.kvcache.tiers import Group, Shelves, Tier

FULL_ATTENTION_KINDS: Final = frozenset(("full_attention", "mla_attention", "sink_full_attention"))
# Counts as full attention where it is an engine's only group.
UNKNOWN_KIND: Final = "unknown"
# No model has more; a bound against an engine that lies.
MAX_GROUPS: Final = 64


class Placed(NamedTuple):
    """A span of the group that stands for the stream is in GPU memory now."""

    parent: BlockKey
    keys: Sequence[BlockKey]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why (part of) an event could not be indexed; low cardinality."""

    reason: str


class Holdings:
    """One stream."""

    def __init__(self, shelves: Shelves) -> None:
        self._shelves = shelves
        self._groups: dict[int | None, Group | None] = {}
        """By the engine's number, None for an engine that has none; None: passed over."""
        self.counted: tuple[Group, ...] = ()
        """Those that tell how long a prefix is held; the first stands for the stream."""
        self.all_must_hold = False
        """A prefix counts as far as each of `counted` holds it, not any of them."""
        self.at_most = False
        """The engine may find less of a prefix than `counted` hold: other groups have a say."""
        self.changed = False
        """Set when `counted` is another one, or offloads for the first time."""

    def store(self, event: BlockStored) -> Placed | Problem | None:
        """Blocks more; None: nothing to be told."""
        if event.medium not in self._shelves.holders:
            return None
        if not event.tokens and event.medium != GPU:
            return self._store_known(event)
        group = self._group_of(event)
        if not isinstance(group, Group):
            return group
        tier = self._tier(group, event.medium)
        if not tier.has_room(event.hashes):
            return Problem("too_many_blocks")
        parent = root_key(event.lora, group.size) if event.parent is None else group.key(event.parent)
        if parent is None:
            return self._store_unrooted(group, tier, event)
        keys = chain_keys(parent, event.tokens, group.size, event.extras or ())
        tier.add(event.hashes, keys)
        self._adopt(group, event.hashes)
        return Placed(parent, keys) if event.medium == GPU and self.counted[:1] == (group,) else None

    def remove(self, event: BlockRemoved) -> Sequence[BlockKey]:
        """One physical copy less of each; those that the GPU holds no longer, in the group that stands for the stream."""
        group = self._addressed(event.group)
        tier = group.tiers.get(event.medium) if group is not None else None
        if group is not None and tier is not None:
            tier.unremoved = None
            gone = group.remove(tier, event.hashes)
            if event.medium == GPU and self.counted[:1] == (group,):
                return gone
        return ()

    def clear(self) -> None:
        """The engine's cache is empty; its shape is what it was."""
        for number, group in self._groups.items():
            if group is not None:
                self._shelves.retire(group)
                self._groups[number] = self._shelves.group(group.size, group.kind)
        self._recount()

    def retire(self) -> None:
        """All that was said is void."""
        for group in self._groups.values():
            if group is not None:
                self._shelves.retire(group)
        self._groups.clear()

    def blocks(self) -> int:
        """Blocks held, in all groups and mediums."""
        return sum(group.blocks for group in self._groups.values() if group)

    def gpu_blocks(self) -> int:
        """Those in GPU memory, which all groups share."""
        return sum(group.tiers[GPU].blocks for group in self._groups.values() if group)

    # --- groups ----------------------------------------------------------------------------------------------
    def _group_of(self, event: BlockStored) -> Group | Problem | None:
        """The group a span belongs to, if it is one that is followed, and the span can be placed in it."""
        number, kind, size = event.group, event.kind, event.block_size
        known = number in self._groups
        group = self._groups.get(number)
        if (known and group is None) or not (kind is None or kind in FULL_ATTENTION_KINDS or kind == UNKNOWN_KIND):
            self._pass_over(number)
            return None
        span = len(event.hashes) * size * TOKEN_BYTES
        if not size or span != len(event.tokens):
            named = kind is not None or (group is not None and group.kind is not None)
            if named or number is None or not size or span > len(event.tokens):
                return Problem("not_dense")
            self._pass_over(number)  # it leaves blocks out: a window, or states
            return Problem("masked_group")
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                return Problem("too_many_groups")
            group = self._begin(number, size, kind)
        elif size != group.size:
            if len(event.hashes) == 1 and group.size % size == 0:
                return None  # a partial block
            if size % group.size:
                return Problem("block_size")
            self._shelves.retire(group)  # so far there were only partial blocks
            group = self._begin(number, size, kind or group.kind)
        elif group.kind is None and kind is not None:
            group.kind = kind
            self._recount()
        return group

    def _begin(self, number: int | None, size: int, kind: str | None) -> Group:
        group = self._groups[number] = self._shelves.group(size, kind)
        self._recount()
        return group

    def _pass_over(self, number: int | None) -> None:
        group = self._groups.get(number)
        if group is not None:
            self._shelves.retire(group)
        if group is not None or (number not in self._groups and len(self._groups) < MAX_GROUPS):
            self._groups[number] = None
            self._recount()

    def _recount(self) -> None:
        groups = [group for group in self._groups.values() if group is not None]
        full = [group for group in groups if group.kind in FULL_ATTENTION_KINDS]
        unnamed = [group for group in groups if group.kind is None]
        self.counted = tuple(full or unnamed or (groups if len(self._groups) == 1 else ()))
        self.all_must_hold = bool(full)
        self.at_most = len(self.counted) < len(self._groups) or (len(self.counted) > 1 and not full)
        self.changed = True

    def _addressed(self, number: int | None) -> Group | None:
        """The group an event without tokens means; the only one, where it names none."""
        if number is None and number not in self._groups and len(self._groups) == 1:
            return next(iter(self._groups.values()))
        return self._groups.get(number)

    def _tier(self, group: Group, medium: str) -> Tier:
        tier = group.tiers.get(medium)
        if tier is None:
            tier = self._shelves.tier(group, medium)
            self.changed = True
        return tier

    # --- spans -----------------------------------------------------------------------------------------------
    def _store_known(self, event: BlockStored) -> Problem | None:
        """Blocks named by hash alone are in this medium too."""
        group = self._addressed(event.group)
        if group is None:
            return None
        known = [(block, key) for block in event.hashes if (key := group.key(block)) is not None]
        if known:
            blocks, keys = zip(*known, strict=True)
            tier = self._tier(group, event.medium)
            if not tier.has_room(blocks):
                return Problem("too_many_blocks")
            tier.add(blocks, keys)
        return None if len(known) == len(event.hashes) else Problem("offloaded_unknown")

    def _store_unrooted(self, group: Group, tier: Tier, event: BlockStored) -> Problem | None:
        """The parent is unknown: blocks wait for it, up to the first whose own key is known from another copy."""
        width = group.size * TOKEN_BYTES
        parent = event.parent
        assert parent is not None
        problem = None
        for i, block in enumerate(event.hashes):
            tokens = event.tokens[i * width : (i + 1) * width]
            extras = event.extras[i] if event.extras else NO_EXTRAS
            parent_key, key = group.key(parent), group.key(block)
            if parent_key is not None and key is None:
                key = chain_keys(parent_key, tokens, group.size, (extras,))[0]
            if key is not None:
                tier.add((block,), (key,))
                self._adopt(group, (block,))
            else:
                fitted = tier.orphans.add(Orphan(block, parent, tokens, extras))
                problem = problem or Problem("orphan" if fitted else "orphan_dropped")
            parent = block
        return problem

    def _adopt(self, group: Group, parents: Iterable[EngineHash]) -> None:
        """Blocks that waited for one of these get their keys, and so do those that waited for them."""
        waiting = [tier for tier in group.tiers.values() if tier.orphans]
        todo = list(parents) if waiting else []
        while todo:
            parent = todo.pop()
            for tier in waiting:
                for orphan in tier.orphans.adopt(parent):
                    key = group.key(parent)
                    assert key is not None
                    (own,) = chain_keys(key, orphan.tokens, group.size, (orphan.extras,))
                    for _ in range(orphan.copies):
                        tier.add((orphan.hash,), (own,))
                    todo.append(orphan.hash)
