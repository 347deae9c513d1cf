"""A slow, obvious model of vLLM's block pool (spec/kv.md 1.12, 1.13): physical blocks, one free queue, a step's events.

Blocks are told apart by their content: LoRA, salt and all tokens up to their end. A free block keeps its content until it is
taken from the head of the queue. A request that ends gives its blocks back last one first; those without content are taken
again first. Equal content computed twice is there twice. Nothing here hashes, chains or packs but the events.
"""

from collections import Counter
from dataclasses import dataclass

from epp.domain import EngineHash
from epp.kvcache.events import AllCleared, BlockRemoved, BlockStored, Event
from epp.kvcache.keys import pack_tokens, salt_extras

Content = tuple[str | None, str | None, tuple[int, ...]]


@dataclass(eq=False)
class Running:
    """A request under way."""

    lora: str | None
    salt: str | None
    tokens: list[int]
    blocks: list[int]
    stored: int
    """Its leading blocks that have content."""


class VllmCache:
    """One engine's."""

    def __init__(self, blocks: int, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.content: list[Content | None] = [None] * blocks
        self.users = [0] * blocks
        self.free = list(range(blocks))
        self.running: list[Running] = []
        self.seen: set[Content] = set()
        self.step: list[Event] = []
        """What the current step will publish."""

    def copies(self) -> Counter[Content]:
        """Of every content, how many physical blocks have it."""
        return Counter(content for content in self.content if content is not None)

    def leading(self, content: Content) -> int:
        """How many blocks from its start on are there without a break."""
        lora, salt, tokens = content
        held = self.copies()
        ends = range(self.size, len(tokens) + 1, self.size)
        return next((i for i, end in enumerate(ends) if (lora, salt, tokens[:end]) not in held), len(ends))

    def start(self, prompt: tuple[int, ...], lora: str | None, salt: str | None) -> bool:
        """Prefill in one step; False: no room."""
        hit = min(self.leading((lora, salt, prompt)), (len(prompt) - 1) // self.size)
        cached = [self.content.index((lora, salt, prompt[: (i + 1) * self.size])) for i in range(hit)]
        fresh = -(-len(prompt) // self.size) - hit
        if fresh > len([block for block in self.free if block not in cached]):
            return False
        for block in cached:
            self._use(block)
        request = Running(lora, salt, list(prompt), [*cached, *(self._take() for _ in range(fresh))], hit)
        self.running.append(request)
        self._store_full(request)
        return True

    def decode(self, request: Running, token: int) -> bool:
        """One token more; False: no room."""
        if len(request.tokens) == len(request.blocks) * self.size:
            if not self.free:
                return False
            request.blocks.append(self._take())
        request.tokens.append(token)
        self._store_full(request)
        return True

    def finish(self, request: Running) -> None:
        """Its blocks are free, the last one first."""
        self.running.remove(request)
        for block in reversed(request.blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.insert(0 if self.content[block] is None else len(self.free), block)

    def reset(self) -> None:
        """POST /reset_prefix_cache; refused while a request runs."""
        if not self.running:
            self.content = [None] * len(self.content)
            self.step.append(AllCleared())

    def hash(self, content: Content) -> EngineHash:
        """The engine's."""
        return EngineHash(hash((self.seed, content)))

    def _use(self, block: int) -> None:
        if self.users[block] == 0:
            self.free.remove(block)
        self.users[block] += 1

    def _take(self) -> int:
        block = self.free[0]
        content = self.content[block]
        if content is not None:
            self.content[block] = None
            self.step.append(BlockRemoved([self.hash(content)], group=0))
        self._use(block)
        return block

    def _store_full(self, request: Running) -> None:
        size, start, end = self.size, request.stored, len(request.tokens) // self.size
        if start == end:
            return
        contents = [(request.lora, request.salt, tuple(request.tokens[: (i + 1) * size])) for i in range(start, end)]
        for block, content in zip(request.blocks[start:end], contents, strict=True):
            self.content[block] = content
        self.seen.update(contents)
        request.stored = end
        salted = request.salt and start == 0
        self.step.append(
            BlockStored(
                [self.hash(content) for content in contents],
                self.hash((request.lora, request.salt, tuple(request.tokens[: start * size]))) if start else None,
                pack_tokens(request.tokens[start * size : end * size]),
                size,
                request.lora,
                extras=[*salt_extras(request.salt), *[()] * (end - start - 1)] if salted else None,
                group=0,
                kind="full_attention",
            )
        )
