"""Random lives of two engines: the index always answers as slow models of their caches do (see cache_model)."""

import random
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from epp.domain import EndpointId, EngineHash, TokenizedRequest, TokenState
from epp.kvcache.events import AllCleared, Batch, BlockRemoved, BlockStored, Event
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import engine_hash, pack_tokens, salt_extras
from epp.reporter import Reporter
from tests.unit.kvcache.cache_model import CacheModel, Content

ENDPOINTS = [EndpointId("a"), EndpointId("b")]
BLOCK_SIZES = {ENDPOINTS[0]: 2, ENDPOINTS[1]: 3}
DEFAULT_BLOCK_SIZE = 2

endpoints = st.sampled_from(ENDPOINTS)
Prompt = tuple[tuple[int, ...], str | None, str | None]
"""Tokens, LoRA, salt."""

# Few words and lengths, so that prompts share prefixes and come again.
prompts = st.tuples(
    st.sampled_from([(0, 0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 0, 0, 1), ()]),
    st.sampled_from([None, None, None, "adapter"]),
    st.sampled_from([None, None, None, "tenant"]),
)


class NoProblems(Reporter):
    """A healthy engine causes none but orphans, which losses make."""

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        assert reason == "orphan"


class Fleet(RuleBasedStateMachine):
    """Engines that prefill, evict, reset and restart beside an index that hears of it, sometimes late."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(NoProblems(), default_block_size=DEFAULT_BLOCK_SIZE)
        self.models = {endpoint: CacheModel(BLOCK_SIZES[endpoint]) for endpoint in ENDPOINTS}
        self.speculated: dict[tuple[EndpointId, int, Content], float] = {}
        self.asked: set[Prompt] = set()
        self.now = 0.0

    def apply(self, endpoint: EndpointId, *events: Event) -> None:
        self.index.apply(endpoint, 0, Batch(self.now, 0, list(events)))

    @rule(endpoint=endpoints, prompt=prompts, path=st.integers(0, 1), cut=st.integers(0, 4), order=st.sampled_from([1, -1]))
    def prefill(self, endpoint: EndpointId, prompt: Prompt, path: int, cut: int, order: int) -> None:
        """Blocks behind the cached prefix are computed, and announced in one event or two, which may arrive in the wrong order.

        The last block of a full prompt is always computed, as a second copy. An adapter loaded again from another `path`
        has other hashes for the same blocks.
        """
        tokens, lora, salt = prompt
        self.asked.add(prompt)
        model = self.models[endpoint]
        size = model.block_size
        ends = range(size, len(tokens) + 1, size)
        chain = [engine_hash(hash((endpoint, lora, salt, tokens[:end], path if lora else 0))) for end in ends]
        cached = next((i for i, block in enumerate(chain) if block not in model.held), len(chain))
        cached = min(cached, max(0, len(tokens) - 1) // size)
        middle = min(len(chain), cached + cut)
        events: list[Event] = []
        for start, end in ((cached, middle), (middle, len(chain))):
            if start < end:
                span = tokens[start * size : end * size]
                parent = chain[start - 1] if start else None
                model.store(chain[start:end], parent, span, lora, salt)
                extras = [*salt_extras(salt), *[()] * (end - start - 1)] if salt and not start else None
                events.append(BlockStored(chain[start:end], parent, pack_tokens(span), size, lora, extras=extras, group=0))
        self.apply(endpoint, *events[::order])

    @rule(endpoint=endpoints, seed=st.randoms(use_true_random=False), count=st.integers(1, 4))
    def evict(self, endpoint: EndpointId, seed: random.Random, count: int) -> None:
        """Some copies go, in any order."""
        model = self.models[endpoint]
        for _ in range(count):
            if model.held:
                block = seed.choice(sorted(model.held))
                model.remove(block)
                self.apply(endpoint, BlockRemoved([EngineHash(block)], group=0))

    @rule(endpoint=endpoints)
    def reset(self, endpoint: EndpointId) -> None:
        """All blocks are cleared; the engine lives on."""
        self.models[endpoint].clear()
        self.forget_speculations(endpoint)
        self.apply(endpoint, AllCleared())

    @rule(endpoint=endpoints, gone=st.booleans())
    def restart(self, endpoint: EndpointId, *, gone: bool) -> None:
        """The engine restarts, or its pod goes and comes back."""
        self.models[endpoint] = CacheModel(BLOCK_SIZES[endpoint])
        self.forget_speculations(endpoint)
        (self.index.remove if gone else self.index.clear)(endpoint)

    def forget_speculations(self, endpoint: EndpointId) -> None:
        self.speculated = {key: until for key, until in self.speculated.items() if key[0] != endpoint}

    @rule(endpoint=endpoints, prompt=prompts, ttl=st.integers(1, 3))
    def speculate(self, endpoint: EndpointId, prompt: Prompt, ttl: int) -> None:
        """A request was sent to the endpoint."""
        tokens, lora, salt = prompt
        self.asked.add(prompt)
        request = TokenizedRequest(TokenState.EXACT, [tokens], lora=lora, cache_salt=salt)
        self.index.speculate(self.index.match(request, ENDPOINTS, self.now), endpoint, self.now + ttl)
        size = self.block_size(endpoint)
        for end in range(size, len(tokens) + 1, size):
            key = (endpoint, size, (lora, salt, tokens[:end]))
            self.speculated[key] = max(self.speculated.get(key, 0.0), self.now + ttl)

    @rule(seconds=st.integers(1, 2), limit=st.integers(1, 20))
    def time_passes(self, seconds: int, limit: int) -> None:
        """With it goes a slice of sweeping."""
        self.now += seconds
        self.index.sweep(self.now, limit)

    def block_size(self, endpoint: EndpointId) -> int:
        """What the index can know: the engine's, once it has announced a block."""
        return BLOCK_SIZES[endpoint] if self.models[endpoint].contents else DEFAULT_BLOCK_SIZE

    def held_blocks(self, endpoint: EndpointId, prompt: Prompt) -> Iterator[bool]:
        """Of each full block of the prompt, whether it is confirmed or speculated."""
        tokens, lora, salt = prompt
        model, size = self.models[endpoint], self.block_size(endpoint)
        confirmed = {model.contents[block] for block in model.held}
        for end in range(size, len(tokens) + 1, size):
            content = (lora, salt, tokens[:end])
            yield content in confirmed or self.speculated.get((endpoint, size, content), 0.0) > self.now

    @invariant()
    def index_answers_as_the_models(self) -> None:
        """Every prompt ever asked for finds its blocks where they are, and nothing else."""
        for prompt in self.asked:
            tokens, lora, salt = prompt
            request = TokenizedRequest(TokenState.EXACT, [tokens], lora=lora, cache_salt=salt)
            hits = self.index.match(request, ENDPOINTS, self.now)
            for i, endpoint in enumerate(ENDPOINTS):
                held = [*self.held_blocks(endpoint, prompt), False]
                size = self.block_size(endpoint)
                assert hits.blocks[i] == held.index(False)
                assert hits.tokens[i] == min(held.index(False), max(0, len(tokens) - 1) // size) * size

    @invariant()
    def sizes_agree(self) -> None:
        """The number of blocks an operator sees is the engine's."""
        for endpoint in ENDPOINTS:
            assert self.index.blocks(endpoint) == len(self.models[endpoint].held)


Fleet.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_fleet = Fleet.TestCase
