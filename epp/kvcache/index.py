"""The prefix index: which endpoint holds which block, confirmed by its events or speculated after a decision.

An endpoint's ranks each have their `Holdings`, which turn events into bits of the tables all endpoints share (`tiers`): one
bit for each cache group that is followed. A lookup walks a prompt's keys once in the GPU's table for all endpoints; where
engines offload, it goes on in the other mediums from where each one's run in the GPU ends, which is what the engine can load
(spec/kv.md 1.10, 1.14). From the first block found only in a worse medium on, blocks count as that.

Memory is bounded by what the engines say they hold, each tier by `tiers.MAX_BLOCKS`; `clear` and `remove` are O(1), and
`sweep` frees in slices.

Must not know sockets, sequence numbers or time: `now` is an argument. One instance, on the event loop only; never
awaits, so a lookup sees whole batches.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from epp.domain import GPU, BlockKey, DecisionId, EndpointId, TokenizedRequest, Usage
from epp.kvcache.events import AllCleared, Batch, BlockRemoved, BlockStored
from epp.kvcache.hits import Hits
from epp.kvcache.holdings import Holdings, Placed, Problem
from epp.kvcache.predictions import Predictions
from epp.kvcache.speculation import Speculations
from epp.kvcache.table import Table
from epp.kvcache.tiers import MEDIUMS, Shelves
from epp.reporter import Reporter

# A bound against an engine that lies.
MAX_LORAS: Final = 10_000


class _Rank:
    """How long a prefix one rank holds, where that takes more than one bit."""

    __slots__ = ("_all", "_groups", "_unit")

    def __init__(self, holdings: Holdings) -> None:
        self._groups = [(group.bit, group.size) for group in holdings.counted]
        self._all = holdings.all_must_hold
        self._unit = math.lcm(*(size for _, size in self._groups)) if self._all else 1

    def tokens(self, runs: Mapping[int, int]) -> int:
        """Leading tokens, of the runs of each bit in blocks of its group."""
        held = [runs.get(bit, 0) * size for bit, size in self._groups]
        return (min if self._all else max)(held) // self._unit * self._unit


@dataclass(slots=True)
class _View:
    """What a lookup needs of an endpoint; made anew when its holdings are of another shape."""

    size: int
    """Tokens a block of the group that stands for the endpoint."""
    bits: int = 0
    """Those of the groups that stand for its ranks."""
    wanted: tuple[tuple[int, int], ...] = ()
    """(block size, bits) of all that count."""
    ranks: tuple[_Rank, ...] = ()
    """Empty where each rank's run is that of its one bit."""
    offloads: frozenset[str] = frozenset()
    """The other mediums it has blocks in."""
    at_most: bool = False
    """What is held is more than what is found, where other groups have a say."""


@dataclass(frozen=True, slots=True)
class _Queued:
    """Blocks that are speculated for a request which may wait in its engine for longer than they live."""

    at: float
    """When to look whether it still waits."""
    ttl_s: float
    decision_id: DecisionId
    endpoint: EndpointId
    chains: Sequence[Sequence[BlockKey]]


class PrefixIndex:
    """Who holds what (implements scheduling.interfaces.PrefixIndex)."""

    def __init__(
        self,
        reporter: Reporter,
        *,
        default_block_size: int,
        predictions: Predictions | None = None,
        mediums: Sequence[str] = MEDIUMS,
    ) -> None:
        """`default_block_size`: tokens a block of endpoints that have told nothing yet. `predictions` are told what is stored.

        `mediums`: those whose blocks count, from best to worst; the GPU's is the first.
        """
        self._reporter = reporter
        self._predictions = predictions
        self._queued: deque[_Queued] = deque()
        """In order of time, as long as the TTL is constant."""
        self._default_block_size = default_block_size
        self._taught_sizes: dict[EndpointId, int] = {}
        self._shelves = Shelves(mediums)
        self._on_gpu = self._shelves.holders[GPU]
        self._endpoints: dict[EndpointId, dict[int, Holdings]] = {}
        self._views: dict[EndpointId, _View] = {}
        """Of endpoints whose groups are known."""
        self._speculations = Speculations()
        self._loras: frozenset[str] = frozenset()

    # --- reading ---------------------------------------------------------------------------------------------
    def match(self, tokens: TokenizedRequest, endpoints: Sequence[EndpointId], now: float) -> Hits:
        """Longest contiguous prefix each endpoint holds, confirmed or speculated and not expired at `now`."""
        views = [self._views.get(endpoint) or _View(self.block_size(endpoint)) for endpoint in endpoints]
        hits = Hits(tokens, endpoints, [view.size for view in views])
        wanted: dict[int, int] = {}
        offloading: list[int] = []
        for i, view in enumerate(views):
            if view.offloads:
                offloading.append(i)
            for size, bits in view.wanted:
                wanted[size] = wanted.get(size, 0) | bits
        for prompt in range(hits.prompts):
            runs: dict[int, int] = {}
            for size, bits in wanted.items():
                self._run(hits.chains(size)[prompt], bits, runs)
            ends = self._match_on_gpu(hits, prompt, views, runs, now)
            if offloading:
                self._match_offloaded(hits, prompt, views, offloading, runs, ends)
        return hits

    def speculate(self, hits: object, endpoint: EndpointId, until: float) -> None:
        """The endpoint is about to compute these prompts: count their full blocks as held until then, apart from confirmed ones."""
        if not isinstance(hits, Hits):
            raise TypeError("speculate takes what match() returned")
        for chain in hits.chains(self.block_size(endpoint)):
            self._speculations.add(endpoint, chain, until)

    def unspeculate(self, endpoint: EndpointId) -> None:
        """It failed a request, and may compute nothing: what is only speculated of it counts no longer."""
        self._speculations.forget(endpoint)

    def predict(
        self,
        hits: object,
        endpoint: EndpointId,
        decision_id: DecisionId,
        model: str,
        now: float,
        ttl_s: float,
        *,
        reads_cache: bool = True,
    ) -> None:
        """A request goes to one of the endpoints that were asked for: what is stored there will be held against what was expected.

        `ttl_s`: what is speculated for it lives so long, and again until its prefill has been seen to end; 0: nothing is.
        """
        if not isinstance(hits, Hits):
            raise TypeError("predict takes what match() returned")
        predictions, view = self._predictions, self._views.get(endpoint)
        at_most = view is not None and view.at_most
        prompt = None if predictions is None else hits.prompt(endpoint, reads_cache=reads_cache, at_most=at_most)
        if predictions is None or prompt is None:
            return
        predictions.add(decision_id, endpoint, model, prompt)
        if ttl_s > 0 and predictions.is_open(decision_id):
            chains = hits.chains(self.block_size(endpoint))
            self._queued.append(_Queued(now + ttl_s / 2, ttl_s, decision_id, endpoint, chains))

    def answer_ended(self, decision_id: DecisionId, *, served: bool = True, said: Usage | None = None) -> None:
        """Nothing more will be stored for this request. `served`: its endpoint answered it; `said`: what of its usage can be compared."""
        if self._predictions is not None:
            self._predictions.ended(decision_id, served=served, said=said)

    def block_size(self, endpoint: EndpointId) -> int:
        """Tokens a block: what its events said, else what `set_block_size` said, else the default."""
        view = self._views.get(endpoint)
        return self._taught_sizes.get(endpoint, self._default_block_size) if view is None else view.size

    def blocks(self, endpoint: EndpointId) -> int:
        """Confirmed blocks held, over all ranks, cache groups and mediums."""
        return sum(holdings.blocks() for holdings in self._endpoints.get(endpoint, {}).values())

    def gpu_blocks(self, endpoint: EndpointId) -> dict[int, int]:
        """Confirmed blocks in GPU memory, by rank."""
        return {rank: holdings.gpu_blocks() for rank, holdings in self._endpoints.get(endpoint, {}).items()}

    def known_loras(self) -> frozenset[str]:
        """LoRA names any engine has mentioned."""
        return self._loras

    # --- writing ---------------------------------------------------------------------------------------------
    def apply(self, endpoint: EndpointId, rank: int, batch: Batch) -> None:
        """Apply the events of one batch in order; what cannot be applied is reported and skipped."""
        for reason in batch.errors:
            self._problem(endpoint, reason)
        ranks = self._endpoints.setdefault(endpoint, {})
        holdings = ranks.get(rank)
        if holdings is None:
            holdings = ranks[rank] = Holdings(self._shelves)
        for event in batch.events:
            match event:
                case BlockStored():
                    self._store(endpoint, holdings, event)
                case BlockRemoved():
                    gone = holdings.remove(event)
                    if gone and self._predictions is not None:
                        self._predictions.removed(endpoint, gone)
                case AllCleared():
                    holdings.clear()
                    self._forget_expected(endpoint)
        if holdings.changed:
            holdings.changed = False
            self._look_at(endpoint)

    def set_block_size(self, endpoint: EndpointId, block_size: int) -> None:
        """What `cache_config_info` of the endpoint tells; its events overrule it."""
        if block_size > 0:
            self._taught_sizes[endpoint] = block_size

    def clear(self, endpoint: EndpointId, rank: int | None = None) -> None:
        """The engine restarted (one rank of it, or all): forget what it held and how its blocks looked."""
        ranks = self._endpoints.get(endpoint, {})
        for gone in [rank] if rank is not None else list(ranks):
            if gone in ranks:
                ranks.pop(gone).retire()
        self._look_at(endpoint)
        self._forget_expected(endpoint)

    def remove(self, endpoint: EndpointId) -> None:
        """The endpoint is gone: forget everything about it."""
        self.clear(endpoint)
        self._endpoints.pop(endpoint, None)
        self._taught_sizes.pop(endpoint, None)

    def sweep(self, now: float, limit: int = 2_000) -> bool:
        """Free about `limit` blocks of retired streams and expired speculations; True: there is more. To be called every second or so."""
        self._prolong(now)
        if self._predictions is not None:
            self._predictions.settle(now)
        freed = self._speculations.sweep(now, limit)
        freed += self._shelves.sweep(limit - freed)
        return freed >= limit

    def _prolong(self, now: float) -> None:
        """What is speculated for requests whose prefill has not been seen to end lives on."""
        while self._queued and self._queued[0].at <= now:
            queued = self._queued.popleft()
            if self._predictions is not None and self._predictions.is_open(queued.decision_id):
                for chain in queued.chains:
                    self._speculations.add(queued.endpoint, chain, now + queued.ttl_s)
                self._queued.append(replace(queued, at=now + queued.ttl_s / 2))

    # --- matching --------------------------------------------------------------------------------------------
    def _match_on_gpu(self, hits: Hits, prompt: int, views: Sequence[_View], runs: Mapping[int, int], now: float) -> list[int]:
        """Adds what is confirmed and speculated in GPU memory; returns the end of each endpoint's run, in its own blocks."""
        ends = []
        for i, view in enumerate(views):
            bits = view.bits
            if view.ranks:
                run = max(rank.tokens(runs) for rank in view.ranks) // view.size
            elif bits & (bits - 1):
                run = max(runs.get(bit, 0) for bit in _each_bit(bits))
            else:
                run = runs.get(bits, 0)
            hits.confirmed[i] += run
            endpoint = hits.endpoints[i]
            if endpoint in self._speculations:
                chain = hits.chains(view.size)[prompt]
                speculated = self._speculations.prefix(endpoint, chain, now)
                if speculated > run:
                    run = speculated
                    if bits and not view.ranks:
                        run = max(_run_from(self._on_gpu, chain, speculated, bit) for bit in _each_bit(bits))
            ends.append(run)
            hits.add(i, prompt, run)
        return ends

    def _match_offloaded(
        self, hits: Hits, prompt: int, views: Sequence[_View], offloading: Sequence[int], runs: Mapping[int, int], ends: list[int]
    ) -> None:
        """Adds what engines can load from other mediums, from where their run in GPU memory ends."""
        for size in dict.fromkeys(views[i].size for i in offloading):
            own = [i for i in offloading if views[i].size == size]
            chain = hits.chains(size)[prompt]
            at: dict[int, int] = {}
            for i in own:
                for bit in _each_bit(views[i].bits):
                    # Where more than its own run counts, by speculation, any rank may be the one; of several groups, the least.
                    at[bit] = ends[i] if views[i].ranks or ends[i] > runs.get(bit, 0) else runs.get(bit, 0)
            tables: list[Table[BlockKey, int]] = []
            for medium, table in self._shelves.holders.items():
                if not any(medium in views[i].offloads for i in own):
                    continue
                tables.append(table)
                _extend(tables, chain, at)
                for i in own:
                    end = max((at[bit] for bit in _each_bit(views[i].bits)), default=0)
                    if end > ends[i]:
                        hits.add(i, prompt, end, ends[i], medium)
                        ends[i] = end

    def _run(self, chain: Sequence[BlockKey], alive: int, runs: dict[int, int]) -> None:
        """Adds to `runs` the leading blocks of each group whose bit is set; one that holds none gets no entry."""
        if not alive:
            return
        length, shards, mask = 0, self._on_gpu.shards, self._on_gpu.mask
        for length, key in enumerate(chain):
            held = shards[key & mask].get(key)
            still = alive & held if held is not None else 0
            if still != alive:
                if length:
                    for bit in _each_bit(alive ^ still):
                        runs[bit] = length
                alive = still
                if not alive:
                    return
        if chain:
            for bit in _each_bit(alive):
                runs[bit] = length + 1

    # --- applying --------------------------------------------------------------------------------------------
    def _store(self, endpoint: EndpointId, holdings: Holdings, event: BlockStored) -> None:
        if event.lora is not None and event.lora not in self._loras:
            if len(self._loras) >= MAX_LORAS:
                self._problem(endpoint, "too_many_loras")
                return
            self._loras |= {event.lora}
        placed = holdings.store(event)
        if isinstance(placed, Placed):
            if self._predictions is not None:
                self._predictions.stored(endpoint, placed.parent, event, placed.keys)
        elif isinstance(placed, Problem):
            self._problem(endpoint, placed.reason)
        elif not holdings.counted and self._predictions is not None:
            self._predictions.heard(endpoint)

    def _problem(self, endpoint: EndpointId, reason: str) -> None:
        self._reporter.kv_event_error(endpoint, reason)
        if self._predictions is not None:
            self._predictions.unusable(endpoint, reason)

    def _look_at(self, endpoint: EndpointId) -> None:
        """The endpoint's holdings are of another shape than before."""
        ranks = [holdings for holdings in self._endpoints.get(endpoint, {}).values() if holdings.counted]
        if not ranks:
            self._views.pop(endpoint, None)
            return
        size = ranks[0].counted[0].size
        view = self._views[endpoint] = _View(size)
        wanted: dict[int, int] = {}
        for holdings in ranks:
            view.bits |= holdings.counted[0].bit
            for group in holdings.counted:
                wanted[group.size] = wanted.get(group.size, 0) | group.bit
        view.wanted = tuple(wanted.items())
        if len(wanted) > 1 or any(len(holdings.counted) > 1 for holdings in ranks):
            view.ranks = tuple(map(_Rank, ranks))
        view.at_most = any(holdings.at_most for holdings in ranks)
        view.offloads = frozenset(medium for holdings in ranks for medium in holdings.counted[0].tiers if medium != GPU)

    def _forget_expected(self, endpoint: EndpointId) -> None:
        self._speculations.forget(endpoint)
        if self._predictions is not None:
            self._predictions.forget(endpoint)


def _run_from(holders: Table[BlockKey, int], chain: Sequence[BlockKey], start: int, bit: int) -> int:
    """End of the run of confirmed blocks that begins at `start`."""
    end = start
    while end < len(chain) and (holders.get(chain[end]) or 0) & bit:
        end += 1
    return end


def _extend(tables: Sequence[Table[BlockKey, int]], chain: Sequence[BlockKey], at: dict[int, int]) -> None:
    """Move each bit's position to the end of the run that begins there, of blocks that any of the tables has for it."""
    starting: dict[int, int] = {}
    for bit, start in at.items():
        starting[start] = starting.get(start, 0) | bit
    starts = sorted(starting)
    first, *others = [(table.shards, table.mask) for table in tables]
    shards, mask = first
    alive = 0
    for start, stop in zip(starts, [*starts[1:], len(chain)], strict=True):
        alive |= starting[start]
        for position in range(start, stop):
            key = chain[position]
            held = shards[key & mask].get(key, 0)
            for more, of in others:
                held |= more[key & of].get(key, 0)
            if alive & held != alive:
                for bit in _each_bit(alive & ~held):
                    at[bit] = position
                alive &= held
                if not alive:
                    break
    for bit in _each_bit(alive):
        at[bit] = len(chain)


def _each_bit(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest
        bits ^= lowest
