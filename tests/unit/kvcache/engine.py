"""One engine as the parity monitor meets it: what it is really asked for, computed block by block and published, evicted when full.

Independent of our keys: blocks are told apart by their content (LoRA, salt and all tokens up to their end), hashes are numbers.
Publishes payloads as vLLM 0.32 writes them, and counts what it looks up and finds in its cache (spec/kv.md 1.7, 5).
"""

import random
from collections.abc import Callable, Sequence

import msgspec

Content = tuple[str | None, str | None, tuple[int, ...]]


class Engine:
    """Takes prompts, gives payloads of events."""

    def __init__(self, publish: Callable[[bytes], None], *, block_size: int = 16, capacity: int = 10_000, seed: int = 0) -> None:
        """`capacity` in blocks; `publish` gets each step's payload."""
        self.publish = publish
        self.queries = self.hits = 0
        """Tokens looked up and found, as the counters of /metrics tell them."""
        self._block_size = block_size
        self._capacity = capacity
        self._rng = random.Random(seed)
        self._held: dict[Content, int] = {}
        """Of held blocks, least recently used first."""
        self._all: dict[Content, int] = {}

    def run(
        self,
        prompt: Sequence[int],
        answer: Sequence[int] = (),
        *,
        lora: str | None = None,
        salt: str | None = None,
        reads_cache: bool = True,
        leaves_out: int = 0,
    ) -> int:
        """Prefill, decode; how many tokens were cached: the last one is always computed. `reads_cache` False: so are all others, and stored again.

        `leaves_out`: so many blocks at the end of a hit are computed all the same, as with speculative decoding.
        """
        contents = [
            self._content((*prompt, *answer), end, lora, salt) for end in range(1, (len(prompt) + len(answer)) // self._block_size + 1)
        ]
        full = len(prompt) // self._block_size
        cached = 0
        most = max(0, len(prompt) - 1) // self._block_size
        while reads_cache and cached < most and contents[cached] in self._held:
            cached += 1
        cached = max(0, cached - leaves_out)
        self.queries += len(prompt) if reads_cache else 0
        self.hits += cached * self._block_size
        for content in contents[:cached]:
            self._held[content] = self._held.pop(content)
        at = cached
        while at < len(contents):
            # A step's share of a prompt, or a block of the answer.
            end = min(full, at + self._rng.randint(1, 8)) if at < full else at + 1
            self._store(contents[at:end], contents[at - 1] if at else None, again=not reads_cache or leaves_out > 0)
            at = end
        return cached * self._block_size

    def restart(self) -> None:
        """Another process in its place, which says nothing yet."""
        self._held.clear()
        self._all.clear()
        self.queries = self.hits = 0

    def lose(self) -> None:
        """What it holds is gone, and nobody is told."""
        self._held.clear()

    def duplicate(self) -> None:
        """Two requests computed the same block in one step: it is stored again (spec/kv.md 1.13), and one copy goes later."""
        content = self._rng.choice(list(self._held))
        lora, salt, tokens = content
        parent = (lora, salt, tokens[: -self._block_size])
        if len(tokens) == self._block_size or parent in self._held:
            event = self._stored([content], parent if len(tokens) > self._block_size else None)
            self._tell(event, self._removed(content))

    def _content(self, tokens: Sequence[int], end: int, lora: str | None, salt: str | None) -> Content:
        return lora, salt, tuple(tokens[: end * self._block_size])

    def _store(self, contents: Sequence[Content], parent: Content | None, *, again: bool) -> None:
        events: list[dict[str, object]] = []
        while len(self._held) + len(contents) > self._capacity:
            oldest = next(iter(self._held))
            events.append(self._removed(oldest))
            del self._held[oldest]
        new = [content for content in contents if content not in self._held]
        for content in contents:
            self._held[content] = self._all.setdefault(content, len(self._all) + 1)
        if new or again:
            events.append(self._stored(contents, parent))
        self._tell(*events)

    def _tell(self, *events: dict[str, object]) -> None:
        self.publish(msgspec.msgpack.encode({"ts": 1.0, "events": events, "data_parallel_rank": None}))

    def _stored(self, contents: Sequence[Content], parent: Content | None) -> dict[str, object]:
        lora, salt, tokens = contents[-1]
        begin = 0 if parent is None else len(parent[2])
        extras = [[name for name in (lora, salt if begin + i == 0 else None) if name] or None for i in range(len(contents))]
        return {
            "type": "BlockStored",
            "block_hashes": [self._all[content] for content in contents],
            "parent_block_hash": None if parent is None else self._all[parent],
            "token_ids": list(tokens[begin:]),
            "block_size": self._block_size,
            "lora_id": None if lora is None else 1,
            "medium": "GPU",
            "lora_name": lora,
            "extra_keys": extras if any(extras) else None,
        }

    def _removed(self, content: Content) -> dict[str, object]:
        return {"type": "BlockRemoved", "block_hashes": [self._held[content]], "medium": "GPU"}
