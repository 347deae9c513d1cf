"""The engine: which tokens of which requests are computed in each step, and what that does to the cache (spec/kv.md 1.12, 1.13).

Pure and sans-I/O: it knows neither clock nor event loop. The pod calls `start_step`, waits as long as the step says,
calls `finish_step`, and hands on what that returns. One owner, one thread; `add` and `abort` may come at any time
between these calls.

The rules are vLLM's: requests that run go first, then waiting ones in order of arrival, as long as the step's token
budget and the batch have room; a long prompt is computed in chunks that share steps with decodes. Blocks enter the
cache when a step is *scheduled* (so a request later in the same step hits them); what happened to the cache is
published with the step's outputs. The last token of a prompt is always computed, even if all of it is cached.

Different from vLLM: nothing is preempted. A request is admitted when the blocks of its whole answer fit beside those
promised to the others, and waits until then.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from epp.simulator.block_pool import Block, BlockPool
from epp.simulator.events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from epp.simulator.hashing import BlockHasher, ExtraKeys, wire_extra_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """How long a step takes. Default: a prompt of 1,000 uncached tokens 0.3 s, one token of an answer 25 ms.

    Steps below 10 ms would drown in the scheduling noise of a busy machine with 2 cores, which is about 1 ms.
    """

    step_ms: float = 25.0
    """Shortest step: reading the weights once."""
    prefill_us_per_token: float = 300.0
    """Each prompt token that is not cached."""
    decode_us_per_request: float = 200.0
    """Each request that gets its next token."""

    def step_s(self, prefill_tokens: int, decodes: int) -> float:
        """Seconds of a step that computes so many prompt tokens and continues so many answers."""
        prefill = max(self.step_ms / 1e3, prefill_tokens * self.prefill_us_per_token / 1e6)
        return prefill + decodes * self.decode_us_per_request / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Size and speed of one engine."""

    block_size: int = 16
    """Tokens a block."""
    num_blocks: int = 2048
    """Physical blocks, the null block included."""
    max_num_seqs: int = 16
    """Requests in one batch."""
    max_num_batched_tokens: int = 512
    """Tokens computed in one step."""
    latency: LatencyProfile = field(default_factory=LatencyProfile)

    @property
    def capacity_tokens(self) -> int:
        """Tokens all blocks hold together: the longest prompt plus answer that can ever run."""
        return (self.num_blocks - 1) * self.block_size


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter: it roots a hash chain of its own."""

    id: int
    name: str
    path: str


@dataclass(slots=True, eq=False)
class Request:
    """One prompt and the answer the model is going to give; the lower half belongs to the engine."""

    id: str
    prompt: Sequence[int]
    answer: Sequence[int]
    """At least one token, decided in advance."""
    lora: Lora | None = None
    cache_salt: str | None = None
    reports_hit: bool = False
    """Its cached prefix is announced once more when it starts, as with vLLM's kv_cache_report_mode=full."""

    tokens: list[int] = field(init=False)
    """Prompt and what has been said so far."""
    digests: list[bytes] = field(init=False, default_factory=list)
    """One for each full block of `tokens`."""
    blocks: list[Block] = field(init=False, default_factory=list)
    computed: int = field(init=False, default=0)
    """Tokens that are in the cache, or will be when the running step ends."""
    stored: int = field(init=False, default=0)
    """Leading blocks that are in the cache under their digest."""
    cached_tokens: int = field(init=False, default=0)
    """Tokens of the prompt that were a hit."""

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def is_prefilling(self) -> bool:
        """Whether no token of the answer is known yet."""
        return len(self.tokens) == len(self.prompt)

    @property
    def said(self) -> Sequence[int]:
        """The part of the answer that is known."""
        return self.tokens[len(self.prompt) :]

    @property
    def is_unfinished(self) -> bool:
        """Whether some of the answer is still to be said."""
        return len(self.tokens) < len(self.prompt) + len(self.answer)

    def extra_keys(self, block: int) -> ExtraKeys | None:
        """What enters the hash of block number `block` beside tokens (spec/kv.md 1.8)."""
        keys: list[tuple[str, ...]] = []
        if self.lora is not None:
            keys.append(("lora", self.lora.name, self.lora.path))
        if self.cache_salt is not None and block == 0:
            keys.append(("cache_salt", self.cache_salt))
        return tuple(keys) or None


@dataclass(slots=True)
class Step:
    """One forward pass: its length, and how many prompt tokens and decodes make it up."""

    duration_s: float
    prefill_tokens: int
    decodes: int


@dataclass(slots=True)
class Output:
    """The next token of one answer."""

    request: Request
    token: int
    is_first: bool
    is_last: bool


@dataclass(slots=True)
class StepResult:
    """What a step brought: tokens, and what happened to the cache since the last result, in order."""

    outputs: list[Output]
    events: list[KvEvent]


@dataclass(slots=True)
class EngineStats:
    """Counters behind /metrics, all in tokens."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Engine:
    """Scheduler and cache of one pod."""

    def __init__(self, config: EngineConfig, hasher: BlockHasher) -> None:
        self.config = config
        self.stats = EngineStats()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.pool = BlockPool(config.num_blocks, self._record_eviction)
        self._hasher = hasher
        self._events: list[KvEvent] = []
        # Requests of the step in flight; None between steps.
        self._scheduled: list[Request] | None = None
        self._aborted: set[Request] = set()
        # Blocks promised to running requests and not handed out yet.
        self._promised = 0

    def add(self, request: Request) -> None:
        """Queue a request. It must fit into the whole cache: len(prompt) + len(answer) - 1 <= capacity."""
        if not request.prompt or not request.answer or self._blocks_needed(request) > self.pool.capacity:
            raise ValueError(f"request {request.id}: {len(request.prompt)} + {len(request.answer)} tokens can never run here")
        self._extend_digests(request)
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """The client is gone: forget the request and free its blocks, at the end of the step if one is in flight."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            if self._scheduled is None:
                self._leave(request)
            else:
                self._aborted.add(request)

    def reset_prefix_cache(self) -> bool:
        """Empty the cache, unless a block is in use. Published with the next step's events, so an idle engine tells nobody yet (spec/kv.md 1.12)."""
        if not self.pool.reset():
            return False
        self._events.append(AllBlocksCleared())
        return True

    def start_step(self) -> Step | None:
        """Decide the next forward pass; None: there is nothing to do. O(tokens of the step)."""
        assert self._scheduled is None, "a step is in flight"
        budget = self.config.max_num_batched_tokens
        scheduled: list[Request] = []
        prefill_tokens = decodes = 0
        for request in self._candidates():
            count = min(len(request.tokens) - request.computed, budget)
            if request.is_prefilling:
                prefill_tokens += count
            else:
                decodes += 1
            self._compute(request, count)
            scheduled.append(request)
            budget -= count
            if not budget:
                break
        if not scheduled:
            return None
        self._scheduled = scheduled
        return Step(self.config.latency.step_s(prefill_tokens, decodes), prefill_tokens, decodes)

    def finish_step(self) -> StepResult:
        """The forward pass is over: every request whose tokens are all computed gets its next one."""
        assert self._scheduled is not None, "no step is in flight"
        outputs = [
            self._say_next(request)
            for request in self._scheduled
            if request.computed == len(request.tokens) and request not in self._aborted
        ]
        self._scheduled = None
        for output in outputs:
            if output.is_last:
                self._leave(output.request)
        for request in self._aborted:
            self._leave(request)
        self._aborted.clear()
        events, self._events = self._events, []
        return StepResult(outputs, events)

    def _candidates(self) -> Iterator[Request]:
        """Who may compute next; a waiting request is admitted when it is asked for, so after the budget is spent none is."""
        yield from tuple(self.running)
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            if not self._admit(request):
                return
            yield self.waiting.popleft()

    def _admit(self, request: Request) -> bool:
        """Take the blocks of the cached prefix and promise the rest; False: they do not fit yet."""
        block_size = self.config.block_size
        hit = self.pool.longest_hit(request.digests, limit=(len(request.prompt) - 1) // block_size)
        needed = self._blocks_needed(request) - len(hit)
        # A hit on a block nobody uses takes it out of the free ones too.
        revived = sum(block.references == 0 for block in hit)
        if needed + revived > self.pool.free - self._promised:
            return False
        self.pool.touch(hit)
        self._promised += needed
        request.blocks = hit
        request.stored = len(hit)
        request.computed = request.cached_tokens = len(hit) * block_size
        self.stats.prefix_queries += len(request.prompt)
        self.stats.prefix_hits += request.cached_tokens
        self.running.append(request)
        if request.reports_hit and hit:
            self._announce(request, 0, len(hit))
        return True

    def _compute(self, request: Request, count: int) -> None:
        """Give the next `count` tokens their blocks and put the blocks they fill into the cache."""
        block_size = self.config.block_size
        request.computed += count
        missing = -(-request.computed // block_size) - len(request.blocks)
        request.blocks += self.pool.allocate(missing)
        self._promised -= missing
        full = request.computed // block_size
        if full > request.stored:
            self._store(request, request.stored, full)
            request.stored = full

    def _store(self, request: Request, start: int, end: int) -> None:
        for block, digest in zip(request.blocks[start:end], request.digests[start:end], strict=True):
            self.pool.store(block, digest)
        self._announce(request, start, end)

    def _announce(self, request: Request, start: int, end: int) -> None:
        """These blocks of the request are in the cache."""
        digests, external, block_size = request.digests, self._hasher.external, self.config.block_size
        self._events.append(
            BlockStored(
                block_hashes=[external(digest) for digest in digests[start:end]],
                parent_block_hash=external(digests[start - 1]) if start else None,
                token_ids=request.tokens[start * block_size : end * block_size],
                block_size=block_size,
                lora_id=request.lora.id if request.lora else None,
                lora_name=request.lora.name if request.lora else None,
                extra_keys=[wire_extra_keys(request.extra_keys(block)) for block in range(start, end)],
            )
        )

    def _record_eviction(self, digest: bytes) -> None:
        self._events.append(BlockRemoved(self._hasher.external(digest)))

    def _say_next(self, request: Request) -> Output:
        is_first = request.is_prefilling
        token = request.answer[len(request.tokens) - len(request.prompt)]
        request.tokens.append(token)
        self._extend_digests(request)
        self.stats.generated_tokens += 1
        if is_first:
            self.stats.prompt_tokens += len(request.prompt)
        is_last = len(request.tokens) == len(request.prompt) + len(request.answer)
        return Output(request, token, is_first, is_last)

    def _leave(self, request: Request) -> None:
        self._promised -= self._blocks_needed(request) - len(request.blocks)
        self.pool.release(request.blocks)
        self.running.remove(request)

    def _blocks_needed(self, request: Request) -> int:
        """Blocks of the prompt and the whole answer; the last token said is never computed."""
        return -(-(len(request.prompt) + len(request.answer) - 1) // self.config.block_size)

    def _extend_digests(self, request: Request) -> None:
        block_size, digests = self.config.block_size, request.digests
        for block in range(len(digests), len(request.tokens) // block_size):
            parent = digests[-1] if digests else None
            tokens = request.tokens[block * block_size : (block + 1) * block_size]
            digests.append(self._hasher.digest(parent, tokens, request.extra_keys(block)))
