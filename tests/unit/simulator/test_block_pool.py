"""The order in which blocks are reused, and what evictions say."""

from epp.simulator.block_pool import Block, BlockPool


class Pool:
    """A pool of `capacity` usable blocks that notes what it evicts."""

    def __init__(self, capacity: int) -> None:
        self.evicted: list[bytes] = []
        self.pool = BlockPool(capacity + 1, self.evicted.append)

    def cached(self, *digests: bytes) -> list[Block]:
        """Allocate blocks and cache them under these digests."""
        blocks = self.pool.allocate(len(digests))
        for block, digest in zip(blocks, digests, strict=True):
            self.pool.store(block, digest)
        return blocks


def test_one_block_is_never_handed_out() -> None:
    """vLLM's null block is counted in num_blocks and holds nothing."""
    assert Pool(capacity=3).pool.free == 3


def test_tail_goes_before_head() -> None:
    """Of one request's blocks the last is evicted first, so that what remains is still a prefix."""
    it = Pool(capacity=3)
    it.pool.release(it.cached(b"a", b"b", b"c"))
    it.pool.allocate(2)
    assert it.evicted == [b"c", b"b"]


def test_least_recently_released_goes_first() -> None:
    """A hit saves a block from being next."""
    it = Pool(capacity=2)
    first, second = it.cached(b"a"), it.cached(b"b")
    it.pool.release(first)
    it.pool.release(second)
    hit = it.pool.longest_hit([b"a"], limit=1)
    it.pool.touch(hit)
    it.pool.release(hit)
    it.pool.allocate(1)
    assert it.evicted == [b"b"]


def test_blocks_without_digest_go_before_all_others() -> None:
    """A half-filled block serves nobody: it is reused, last released first, before anything cached."""
    it = Pool(capacity=3)
    it.pool.release(it.cached(b"a"))
    older, younger = it.pool.allocate(1), it.pool.allocate(1)
    it.pool.release(older)
    it.pool.release(younger)
    assert it.pool.allocate(2) == [*younger, *older]
    assert it.evicted == []
    it.pool.allocate(1)
    assert it.evicted == [b"a"]


def test_shared_blocks_stay_until_the_last_user_leaves() -> None:
    """A block two requests use is free only after both."""
    it = Pool(capacity=1)
    mine = it.cached(b"a")
    it.pool.touch(mine)
    it.pool.release(mine)
    assert (it.pool.free, it.pool.usage) == (0, 1.0)
    it.pool.release(mine)
    assert (it.pool.free, it.pool.usage) == (1, 0.0)


def test_copies_are_evicted_one_by_one() -> None:
    """The same content in two blocks is announced as removed twice, and hit until the second time."""
    it = Pool(capacity=2)
    first, second = it.cached(b"a"), it.cached(b"a")
    assert it.pool.longest_hit([b"a"], limit=1) == first
    it.pool.release(first)
    it.pool.release(second)
    it.pool.allocate(1)
    assert it.pool.longest_hit([b"a"], limit=1) == second
    it.pool.allocate(1)
    assert it.evicted == [b"a", b"a"]
    assert it.pool.longest_hit([b"a"], limit=1) == []


def test_a_hit_ends_at_the_first_missing_block() -> None:
    """Blocks behind a gap are no prefix."""
    it = Pool(capacity=2)
    a, _ = it.cached(b"a", b"c")
    assert it.pool.longest_hit([b"a", b"b", b"c"], limit=3) == [a]
