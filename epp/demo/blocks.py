"""Names for KV blocks that anybody can compute: a block is its tokens and all tokens before it.

Shared by `bound` and `explain`, which must not trust the hashes of either the engines or the picker. Pure; ids are valid
for the object that gave them.
"""

from collections.abc import Sequence


class BlockNames:
    """Gives equal prefixes of whole blocks equal numbers. Memory grows with the distinct blocks seen."""

    def __init__(self, block_size: int) -> None:
        """`block_size` in tokens."""
        self.block_size = block_size
        self._ids: dict[tuple[int, tuple[int, ...]], int] = {}

    def chain(self, tokens: Sequence[int], parent: int = 0) -> list[int]:
        """One id for each full block of `tokens`, which follow the block `parent` (0: the beginning). O(tokens)."""
        ids, size, chain = self._ids, self.block_size, []
        for start in range(0, len(tokens) - size + 1, size):
            parent = ids.setdefault((parent, tuple(tokens[start : start + size])), len(ids) + 1)
            chain.append(parent)
        return chain
