"""What a prefix cache of unlimited memory holds, in the plainest way: the tests' own model, which shares no code with epp.

A block is known by all tokens up to its end and by whose it is (adapter, salt). A prompt's last token is always computed, so it is
never part of a hit.
"""

from collections.abc import Sequence

Owner = tuple[str, str]


class CacheModel:
    """One cache, or several taken for one."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._blocks: set[tuple[Owner, tuple[int, ...]]] = set()

    def __len__(self) -> int:
        return len(self._blocks)

    def hit_tokens(self, prompt: Sequence[int], owner: Owner = ("", "")) -> int:
        """Leading tokens that need not be computed."""
        hit = 0
        while hit + self._size < len(prompt) and (owner, tuple(prompt[: hit + self._size])) in self._blocks:
            hit += self._size
        return hit

    def store(self, tokens: Sequence[int], owner: Owner = ("", "")) -> None:
        """These were computed: a prompt, and its answer but for the last token."""
        for end in range(self._size, len(tokens) + 1, self._size):
            self._blocks.add((owner, tuple(tokens[:end])))
