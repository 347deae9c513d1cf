"""Which blocks a cache group of an engine holds, medium by medium: tables that all endpoints share, and the way back from a removal.

`Shelves` has one table a medium: each of our block keys to the groups that hold it there, a bit for each group in one
integer, so one pass over a request's keys finds the longest prefix of all endpoints at once. A `Group` is one cache group of
one (endpoint, rank); its `Tier` in each medium maps engine hashes to block keys, by which removals find their way, and counts
copies only where an engine holds more than one (spec/kv.md 1.13). Forgetting a group is O(1): its bit is asked for by nobody
from then on, and `Shelves.sweep` frees what it held, in slices, so no removal stalls the event loop.

Memory is bounded by what engines hold and by MAX_BLOCKS a tier; what a medium that never tells of removals held longest ago is
forgotten for what is new, from MAX_UNREMOVED blocks on. Pure; used by `holdings` and `index`.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from epp.domain import CPU, GPU, STORAGE, BlockKey, EngineHash
from epp.kvcache.orphans import Orphans
from epp.kvcache.table import Table

# From best to worst; what an engine says of other mediums is passed over, unless configuration names them.
MEDIUMS: Final = (GPU, CPU, STORAGE)

# Bounds against an engine that lies, and against stores that are shared or whose removals nobody tells (spec/kv.md 1.14).
MAX_BLOCKS: Final = 2_000_000
MAX_UNREMOVED: Final = 100_000
MAX_ORPHANS: Final = 8192
# So that an engine that clears its cache again and again leaves nothing to be freed later.
FEW_BLOCKS: Final = 64
# Blocks gone from every medium whose keys are still known: an offloader may name one that has just left the GPU.
MAX_LATELY: Final = 4096

# So that growing one shard takes a millisecond at most: with 10 million blocks in the fleet, and 500,000 of one engine.
HOLDER_SHARDS: Final = 1024
TIER_SHARDS: Final = 32


@dataclass(slots=True, eq=False)
class Tier:
    """What one group holds in one medium."""

    holders: Table[BlockKey, int]
    """The medium's table."""
    bit: int
    """The group's: the same object in every entry that only this group has."""
    tells_removals: bool
    keys: Table[EngineHash, BlockKey] = field(default_factory=lambda: Table(TIER_SHARDS))
    copies: dict[EngineHash, int] = field(default_factory=dict)
    """Physical copies, where more than one."""
    aliases: dict[BlockKey, int] = field(default_factory=dict)
    """Engine hashes that mean the same block of ours, where more than one (a LoRA loaded from another path)."""
    orphans: Orphans = field(default_factory=lambda: Orphans(MAX_ORPHANS))

    def has_room(self, blocks: Sequence[EngineHash]) -> bool:
        """Whether these fit, to within one event; the oldest give way where the engine never says what it drops."""
        shards, mask = self.keys.shards, self.keys.mask
        if self.tells_removals:  # one shard speaks for all
            return not blocks or len(shards[blocks[0] & mask]) < MAX_BLOCKS // TIER_SHARDS
        for block in blocks:
            shard = shards[block & mask]
            while len(shard) >= MAX_UNREMOVED // TIER_SHARDS and block not in shard:
                oldest = next(iter(shard))
                self.copies.pop(oldest, None)
                self.release(shard.pop(oldest))
        return True

    def add(self, blocks: Iterable[EngineHash], keys: Iterable[BlockKey]) -> None:
        """One physical copy more of each."""
        bit, shards, mask = self.bit, self.keys.shards, self.keys.mask
        holder_shards, holder_mask = self.holders.shards, self.holders.mask
        for block, key in zip(blocks, keys, strict=True):
            own = shards[block & mask]
            if block in own:
                self.copies[block] = self.copies.get(block, 1) + 1
                continue
            own[block] = key
            holders = holder_shards[key & holder_mask]
            held = holders.get(key)
            if held is None:
                holders[key] = bit
            elif held & bit:
                self.aliases[key] = self.aliases.get(key, 1) + 1
            else:
                holders[key] = held | bit

    def remove(self, block: EngineHash) -> BlockKey | None:
        """One physical copy less; the key of a block whose last copy this was. Blocks never indexed are none of ours."""
        copies = self.copies.pop(block, 1)
        if copies > 1:
            if copies > 2:
                self.copies[block] = copies - 1
            return None
        key = self.keys.pop(block)
        if key is None:
            self.orphans.removed(block)
        else:
            self.release(key)
        return key

    def release(self, key: BlockKey) -> None:
        """One engine hash less means this block."""
        aliases = self.aliases.pop(key, 1)
        if aliases > 1:
            if aliases > 2:
                self.aliases[key] = aliases - 1
            return
        held = self.holders[key] & ~self.bit
        if held:
            self.holders[key] = held
        else:
            del self.holders[key]


@dataclass(slots=True, eq=False)
class Group:
    """One cache group of one (endpoint, rank)."""

    bit: int
    size: int
    """Tokens a block."""
    kind: str | None
    """KV cache spec kind; None while the engine has not said."""
    tiers: dict[str, Tier] = field(default_factory=dict)
    """By medium; the GPU's comes first."""
    lately: OrderedDict[EngineHash, BlockKey] = field(default_factory=OrderedDict)

    @property
    def blocks(self) -> int:
        """Blocks held, in all mediums."""
        return sum(len(tier.keys) for tier in self.tiers.values())

    @property
    def offloads(self) -> bool:
        """Blocks were seen outside the GPU."""
        return len(self.tiers) > 1

    def key(self, block: EngineHash) -> BlockKey | None:
        """What the engine's hash means, as long as any medium holds it, and shortly after."""
        for tier in self.tiers.values():
            key = tier.keys.get(block)
            if key is not None:
                return key
        return self.lately.get(block)

    def remove(self, tier: Tier, blocks: Iterable[EngineHash]) -> Sequence[BlockKey]:
        """One physical copy less of each in this medium; those of which it held no other."""
        gone: list[BlockKey] = []
        for block in blocks:
            key = tier.remove(block)
            if key is None:
                continue
            gone.append(key)
            if self.offloads:
                self.lately[block] = key
                if len(self.lately) > MAX_LATELY:
                    self.lately.popitem(last=False)
        return gone


class Shelves:
    """The tables all groups share."""

    def __init__(self, mediums: Sequence[str]) -> None:
        """`mediums`: those that count, GPU first."""
        self.holders: dict[str, Table[BlockKey, int]] = {medium: Table(HOLDER_SHARDS) for medium in mediums}
        self._retired: deque[Group] = deque()
        self._free_bits: list[int] = []
        self._bits = 0

    def group(self, size: int, kind: str | None) -> Group:
        """A new one, empty."""
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit = 1 << self._bits
            self._bits += 1
        group = Group(bit, size, kind)
        self.tier(group, GPU)
        return group

    def tier(self, group: Group, medium: str) -> Tier:
        """Where the group's blocks in this medium are."""
        tier = group.tiers.get(medium)
        if tier is None:
            tier = group.tiers[medium] = Tier(self.holders[medium], group.bit, tells_removals=medium == GPU)
        return tier

    def retire(self, group: Group) -> None:
        """Nobody asks for its bit from now on; `sweep` frees its blocks, then the bit. One of few blocks is freed at once."""
        if group.blocks > FEW_BLOCKS:
            self._retired.append(group)
        else:
            self._free(group, FEW_BLOCKS)
            self._free_bits.append(group.bit)

    def sweep(self, limit: int) -> int:
        """Free about `limit` blocks of retired groups; how many it were."""
        freed = 0
        while self._retired and freed < limit:
            freed += self._free(self._retired[0], limit - freed)
            if not self._retired[0].blocks:
                self._free_bits.append(self._retired.popleft().bit)
        return freed

    def _free(self, group: Group, limit: int) -> int:
        freed = 0
        for tier in group.tiers.values():
            for key in islice(tier.keys.drain(), limit - freed):
                tier.release(key)
                freed += 1
        return freed
