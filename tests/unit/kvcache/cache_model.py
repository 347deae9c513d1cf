"""A slow, obvious model of one engine's prefix cache: physical copies counted by content, looked up by walking the prompt.

The witness against which the index is held. Content is what the engine computed a block from: LoRA, salt and all tokens
up to its end; nothing here hashes, chains or packs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

Content = tuple[str | None, str | None, tuple[int, ...]]
"""(LoRA, salt, all tokens up to the end of the block)."""


@dataclass
class CacheModel:
    """One engine."""

    block_size: int
    copies: Counter[int] = field(default_factory=Counter)
    """Physical copies by engine hash."""
    contents: dict[int, Content] = field(default_factory=dict)
    """What every hash ever published stands for."""

    def store(self, hashes: Sequence[int], parent: int | None, tokens: Sequence[int], lora: str | None, salt: str | None) -> None:
        """As the fields of a BlockStored event say; `salt` where the first block starts at token 0."""
        before: Content = (lora, salt, ()) if parent is None else self.contents[parent]
        for i, block in enumerate(hashes):
            before = (*before[:2], before[2] + tuple(tokens[i * self.block_size : (i + 1) * self.block_size]))
            self.contents[block] = before
            self.copies[block] += 1

    def remove(self, block: int) -> None:
        """One copy is evicted."""
        self.copies[block] -= 1
        assert self.copies[block] >= 0

    def clear(self) -> None:
        """All copies are gone."""
        self.copies.clear()

    @property
    def held(self) -> set[int]:
        """Hashes with at least one copy."""
        return {block for block, copies in self.copies.items() if copies > 0}

    def leading_blocks(self, tokens: Sequence[int], lora: str | None, salt: str | None) -> int:
        """How many full blocks from the start of the prompt are held without a break."""
        held = {self.contents[block] for block in self.held}
        blocks = 0
        while (blocks + 1) * self.block_size <= len(tokens) and (lora, salt, tuple(tokens[: (blocks + 1) * self.block_size])) in held:
            blocks += 1
        return blocks
