"""The paged prefix cache of one engine: physical blocks, who uses them, and which one is reused next (spec/kv.md 1.12, 1.13).

Pure; owned and called by the engine only. The rules are vLLM's, because a picker lives from them:

- A free block keeps its digest and can be hit until it is handed out again; only then is it evicted.
- Order of reuse: blocks without a digest first (last released, first reused), then least recently released.
- A digest may sit in several physical blocks: two prefills of the same prompt are not merged. Each copy is evicted,
  and announced as removed, by itself.
- Block 0 is never handed out: vLLM keeps it as its null block, so N blocks hold N - 1 blocks of tokens.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence


class Block:
    """One physical block."""

    __slots__ = ("digest", "index", "references")

    def __init__(self, index: int) -> None:
        self.index = index
        self.references = 0
        """Requests that use it; 0: it is in the free queue."""
        self.digest: bytes | None = None
        """Hash of its tokens and all before them once full; None: never a hit."""


class BlockPool:
    """All blocks of an engine. `on_evicted` is called with the digest of each hashed block that is handed out again."""

    def __init__(self, num_blocks: int, on_evicted: Callable[[bytes], None]) -> None:
        self.capacity = num_blocks - 1
        self._on_evicted = on_evicted
        blocks = (Block(index) for index in range(1, num_blocks))
        self._free: OrderedDict[int, Block] = OrderedDict((block.index, block) for block in blocks)
        # Copies by index, oldest first: the first one is what a hit uses.
        self._cached: dict[bytes, dict[int, Block]] = {}

    @property
    def free(self) -> int:
        """Blocks no request uses, cached or not."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """vllm:kv_cache_usage_perc: share of blocks in use by requests (not how full the cache is)."""
        return 1.0 - self.free / self.capacity

    @property
    def cached(self) -> Collection[bytes]:
        """The digests that can be hit."""
        return self._cached.keys()

    def longest_hit(self, digests: Sequence[bytes], limit: int) -> list[Block]:
        """The cached blocks of the longest prefix of `digests`, at most `limit`. They are not reserved until `touch`."""
        hit: list[Block] = []
        for digest in digests[:limit]:
            copies = self._cached.get(digest)
            if copies is None:
                break
            hit.append(next(iter(copies.values())))
        return hit

    def touch(self, blocks: Iterable[Block]) -> None:
        """One more request uses these blocks."""
        for block in blocks:
            if block.references == 0:
                del self._free[block.index]
            block.references += 1

    def allocate(self, count: int) -> list[Block]:
        """Hand out `count` blocks for new tokens, evicting in order of reuse. The caller has checked `free`."""
        taken: list[Block] = []
        for _ in range(count):
            _, block = self._free.popitem(last=False)
            if block.digest is not None:
                self._forget(block, block.digest)
            block.references = 1
            taken.append(block)
        return taken

    def store(self, block: Block, digest: bytes) -> None:
        """The block is full (or will be when the running step ends): from now on it can be hit."""
        block.digest = digest
        self._cached.setdefault(digest, {})[block.index] = block

    def reset(self) -> bool:
        """Forget every digest; refused, as by vLLM, while any block is in use. The order of reuse stays."""
        if self.free < self.capacity:
            return False
        for block in self._free.values():
            block.digest = None
        self._cached.clear()
        return True

    def release(self, blocks: Sequence[Block]) -> None:
        """A request is over. `blocks` in its order; the tail is put up for reuse before the head."""
        unhashed: list[Block] = []
        for block in reversed(blocks):
            block.references -= 1
            if block.references:
                continue
            if block.digest is None:
                unhashed.append(block)
            else:
                self._free[block.index] = block
        for block in reversed(unhashed):
            self._free[block.index] = block
            self._free.move_to_end(block.index, last=False)

    def _forget(self, block: Block, digest: bytes) -> None:
        copies = self._cached[digest]
        del copies[block.index]
        if not copies:
            del self._cached[digest]
        block.digest = None
        self._on_evicted(digest)
