"""One engine as the parity monitor meets it: what it is really asked for, computed block by block and published, evicted when full.

Independent of our keys: blocks are told apart by their content (LoRA, salt and all tokens up to their end), hashes are numbers.
"""

import random
from collections.abc import Callable, Sequence

from epp.domain import EngineHash
from epp.kvcache.events import Batch, BlockRemoved, BlockStored, Event
from epp.kvcache.keys import Extras, pack_tokens

Content = tuple[str | None, str | None, tuple[int, ...]]


class Engine:
    """Takes prompts, gives batches of events."""

    def __init__(self, publish: Callable[[Batch], None], *, block_size: int = 16, capacity: int = 10_000, seed: int = 0) -> None:
        """`capacity` in blocks; `publish` gets each step's batch."""
        self._publish = publish
        self._block_size = block_size
        self._capacity = capacity
        self._rng = random.Random(seed)
        self._hashes: dict[Content, EngineHash] = {}
        """Of held blocks, least recently used first."""
        self._all: dict[Content, EngineHash] = {}

    def run(self, prompt: Sequence[int], answer: Sequence[int] = (), *, lora: str | None = None, salt: str | None = None) -> int:
        """Prefill, decode; how many leading blocks were cached."""
        contents = [
            self._content((*prompt, *answer), end, lora, salt) for end in range(1, (len(prompt) + len(answer)) // self._block_size + 1)
        ]
        full = len(prompt) // self._block_size
        cached = 0
        while cached < full and contents[cached] in self._hashes:
            cached += 1
        for content in contents[:cached]:
            self._hashes[content] = self._hashes.pop(content)
        at = cached
        while at < len(contents):
            # A step's share of a prompt, or a block of the answer.
            end = min(full, at + self._rng.randint(1, 8)) if at < full else at + 1
            self._store(contents[at:end], contents[at - 1] if at else None)
            at = end
        return cached

    def duplicate(self) -> None:
        """Two requests computed the same block in one step: it is stored again (spec/kv.md 1.13), and one copy goes later."""
        content = self._rng.choice(list(self._hashes))
        lora, salt, tokens = content
        parent = (lora, salt, tokens[: -self._block_size])
        if len(tokens) == self._block_size or parent in self._hashes:
            event = self._stored([content], parent if len(tokens) > self._block_size else None)
            self._publish(Batch(None, events=[event, BlockRemoved([self._hashes[content]])]))

    def _content(self, tokens: Sequence[int], end: int, lora: str | None, salt: str | None) -> Content:
        return lora, salt, tuple(tokens[: end * self._block_size])

    def _store(self, contents: Sequence[Content], parent: Content | None) -> None:
        events: list[Event] = []
        while len(self._hashes) + len(contents) > self._capacity:
            oldest = next(iter(self._hashes))
            events.append(BlockRemoved([self._hashes.pop(oldest)]))
        new = [content for content in contents if content not in self._hashes]
        for content in contents:
            self._hashes[content] = self._all.setdefault(content, EngineHash(len(self._all) + 1))
        if new:
            events.append(self._stored(contents, parent))
        self._publish(Batch(None, events=events))

    def _stored(self, contents: Sequence[Content], parent: Content | None) -> BlockStored:
        lora, salt, tokens = contents[-1]
        begin = 0 if parent is None else len(parent[2])
        extras: list[Extras] | None = [(("salt", salt),), *[()] * (len(contents) - 1)] if salt and not begin else None
        return BlockStored(
            [self._all[content] for content in contents],
            None if parent is None else self._all[parent],
            pack_tokens(tokens[begin:]),
            self._block_size,
            lora,
            extras=extras,
        )
