"""Which blocks a cache group of an engine holds, medium by medium: tables that all endpoints share, and the way back from a removal.

`Shelves` has one table a medium: each of our block keys to the groups that hold it there, a bit for each group in one
integer, so one pass over a request's keys finds the longest prefix of all endpoints at once. A `Group` is one cache group of
one (endpoint, rank); its `Tier` in each medium maps engine hashes to block keys, by which removals find their way, and counts
copies only where an engine holds more than one (spec/kv.md 1.13). Forgetting a group is O(1): its bit is asked for by nobody
from then on, and `Shelves.sweep` frees what it held, in slices, so no removal stalls the event loop. Then it tightens the
tables, a few shards at a time.

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
from epp.kvcache.tree import Tree, new_tree

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

# So that growing one shard takes a millisecond at most, with 10 million blocks in the fleet.
HOLDER_PLACES: Final = 4096
# Shards that are looked at in a sweep: all of them every 6 seconds.
TIGHTENED: Final = 128


@dataclass(slots=True, eq=False)
class Tier:
    """What one group holds in one medium."""

    holders: Table[BlockKey, int]
    """The medium's table."""
    bit: int
    """The group's: the same object in every entry that only this group has."""
    unremoved: deque[EngineHash] | None
    """All blocks, the oldest first, as long as the engine never says what it drops; None once it does."""
    keys: Tree = field(default_factory=new_tree)
    blocks: int = 0
    """How many `keys` there are."""
    copies: dict[EngineHash, int] = field(default_factory=dict)
    """Physical copies, where more than one."""
    aliases: dict[BlockKey, int] = field(default_factory=dict)
    """Engine hashes that mean the same block of ours, where more than one (a LoRA loaded from another path)."""
    orphans: Orphans = field(default_factory=lambda: Orphans(MAX_ORPHANS))

    def has_room(self, blocks: Sequence[EngineHash]) -> bool:
        """Whether these fit; the oldest give way where the engine never says what it drops."""
        if self.unremoved is None:
            return self.blocks + len(blocks) <= MAX_BLOCKS
        room = MAX_UNREMOVED - sum(self.keys.get(block) is None for block in blocks)
        while self.unremoved and len(self.unremoved) > room:
            self._drop(self.unremoved.popleft())
        return True

    def add(self, blocks: Iterable[EngineHash], keys: Iterable[BlockKey]) -> None:
        """One physical copy more of each."""
        bit, insert, unremoved = self.bit, self.keys.insert, self.unremoved
        holder_shards, holder_mask = self.holders.shards, self.holders.mask
        for block, key in zip(blocks, keys, strict=True):
            if not insert(block, key):
                self.copies[block] = self.copies.get(block, 1) + 1
                continue
            self.blocks += 1
            if unremoved is not None:
                unremoved.append(block)
            holders = holder_shards[key & holder_mask]
            held = holders.get(key)
            if held is None:
                holders[key] = bit
            elif held & bit:
                self.aliases[key] = self.aliases.get(key, 1) + 1
            else:
                holders[key] = held | bit

    def take(self, block: EngineHash) -> BlockKey | None:
        """One physical copy less; if it was the last, what the hash meant, to be released. Blocks never indexed are none of ours."""
        copies = self.copies.pop(block, 1)
        if copies > 1:
            if copies > 2:
                self.copies[block] = copies - 1
            return None
        key = self.keys.pop(block, None)
        if key is None:
            self.orphans.removed(block)
        else:
            self.blocks -= 1
        return key

    def release(self, key: BlockKey) -> bool:
        """One engine hash less means this block; whether it was the last, and the tier holds the block no longer."""
        aliases = self.aliases.pop(key, 1)
        if aliases > 1:
            if aliases > 2:
                self.aliases[key] = aliases - 1
            return False
        held = self.holders[key] & ~self.bit
        if held:
            self.holders[key] = held
        else:
            del self.holders[key]
        return True

    def free(self, limit: int) -> int:
        """Drop so many blocks; how many it were."""
        blocks = list(islice(self.keys, limit))
        for block in blocks:
            self._drop(block)
        return len(blocks)

    def _drop(self, block: EngineHash) -> None:
        self.copies.pop(block, None)
        key = self.take(block)
        assert key is not None
        self.release(key)


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
        return sum(tier.blocks for tier in self.tiers.values())

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
        """One physical copy less of each in this medium; the blocks it holds no longer, by any of the engine's hashes."""
        gone: list[BlockKey] = []
        for block in blocks:
            key = tier.take(block)
            if key is None:
                continue
            if tier.release(key):
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
        self.holders: dict[str, Table[BlockKey, int]] = {medium: Table(HOLDER_PLACES) for medium in mediums}
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
            tier = group.tiers[medium] = Tier(self.holders[medium], group.bit, None if medium == GPU else deque())
        return tier

    def retire(self, group: Group) -> None:
        """Nobody asks for its bit from now on; `sweep` frees its blocks, then the bit. One of few blocks is freed at once."""
        if group.blocks > FEW_BLOCKS:
            self._retired.append(group)
        else:
            self._free(group, FEW_BLOCKS)
            self._free_bits.append(group.bit)

    def sweep(self, limit: int) -> int:
        """Free about `limit` blocks of retired groups, and room that the tables do not need; 0: there was nothing to do."""
        freed = 0
        while self._retired and freed < limit:
            freed += self._free(self._retired[0], limit - freed)
            if not self._retired[0].blocks:
                self._free_bits.append(self._retired.popleft().bit)
        for table in self.holders.values():
            freed += table.tighten(TIGHTENED, limit - freed)
        return freed

    def _free(self, group: Group, limit: int) -> int:
        freed = 0
        for tier in group.tiers.values():
            freed += tier.free(limit - freed)
        return freed
