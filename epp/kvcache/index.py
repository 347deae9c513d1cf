"""The prefix index: which endpoint holds which block, confirmed by its events or speculated after a decision.

`holders` maps each of our block keys to the streams that hold it, a bit for each stream in one integer, so one pass over
a request's keys finds the longest contiguous prefix of all endpoints at once. A stream is one (endpoint, data-parallel
rank) with its own map from engine hash to block key, by which removals find their way; counts exist only where an
engine holds more than one copy (spec/kv.md 1.13). Forgetting a stream is O(1): its bit retires at once and `sweep` frees
what it held, in slices, so no removal stalls the event loop.

Counted are GPU blocks of full-attention kind with a dense span, of one cache group a stream: the first that qualifies
(spec/kv.md 8 rule 10). Blocks in other mediums and groups are decoded and passed over. For hybrid models this is an
upper bound of the hit.

Must not know sockets, sequence numbers or time: `now` is an argument. One instance, on the event loop only; never
awaits, so a lookup sees whole batches.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from epp.domain import BlockKey, DecisionId, EndpointId, EngineHash, TokenizedRequest, Usage
from epp.kvcache.events import GPU, AllCleared, Batch, BlockRemoved, BlockStored
from epp.kvcache.hits import Hits
from epp.kvcache.keys import NO_EXTRAS, TOKEN_BYTES, chain_keys, root_key
from epp.kvcache.orphans import Orphan, Orphans
from epp.kvcache.predictions import Predictions
from epp.kvcache.speculation import Speculations
from epp.kvcache.table import Table
from epp.reporter import Reporter

FULL_ATTENTION_KINDS: Final = frozenset((None, "full_attention", "mla_attention", "sink_full_attention"))

# Bounds against an engine that lies or a head that never comes: blocks waiting for a parent, a stream; LoRA names.
MAX_ORPHANS: Final = 8192
MAX_LORAS: Final = 10_000

# So that growing one shard takes a millisecond at most: with 10 million blocks in the fleet, and 500,000 of one engine.
HOLDER_SHARDS: Final = 1024
STREAM_SHARDS: Final = 32


@dataclass(slots=True)
class _Stream:
    """What one (endpoint, rank) holds."""

    bit: int
    """One bit, the same object in every `holders` entry only this stream holds."""
    keys: Table[EngineHash, BlockKey] = field(default_factory=lambda: Table(STREAM_SHARDS))
    copies: dict[EngineHash, int] = field(default_factory=dict)
    """Physical copies, where more than one."""
    aliases: dict[BlockKey, int] = field(default_factory=dict)
    """Engine hashes that mean the same block of ours, where more than one (a LoRA loaded from another path)."""
    orphans: Orphans = field(default_factory=lambda: Orphans(MAX_ORPHANS))
    block_size: int | None = None
    """Tokens a block, learnt from the first event counted."""
    group: int | None = None
    """The cache group counted; None: not seen yet, or the engine does not number its groups."""


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

    def __init__(self, reporter: Reporter, *, default_block_size: int, predictions: Predictions | None = None) -> None:
        """`default_block_size`: tokens a block of endpoints that have told nothing yet. `predictions` are told what is stored."""
        self._reporter = reporter
        self._predictions = predictions
        self._queued: deque[_Queued] = deque()
        """In order of time, as long as the TTL is constant."""
        self._default_block_size = default_block_size
        self._taught_sizes: dict[EndpointId, int] = {}
        self._holders: Table[BlockKey, int] = Table(HOLDER_SHARDS)
        self._streams: dict[EndpointId, dict[int, _Stream]] = {}
        self._speculations = Speculations()
        self._retired: deque[_Stream] = deque()
        self._free_bits: list[int] = []
        self._bits = 0
        self._loras: frozenset[str] = frozenset()

    # --- reading ---------------------------------------------------------------------------------------------
    def match(self, tokens: TokenizedRequest, endpoints: Sequence[EndpointId], now: float) -> Hits:
        """Longest contiguous prefix each endpoint holds, confirmed or speculated and not expired at `now`."""
        sizes = [self.block_size(endpoint) for endpoint in endpoints]
        hits = Hits(tokens, endpoints, sizes)
        for size in dict.fromkeys(sizes):
            asked = [(i, endpoint, self._bits_of(endpoint)) for i, endpoint in enumerate(endpoints) if sizes[i] == size]
            for chain, cap in zip(hits.chains(size), hits.caps(size), strict=True):
                if chain:
                    self._match_chain(hits, chain, cap, asked, now)
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
        predictions = self._predictions
        prompt = None if predictions is None else hits.prompt(endpoint, reads_cache=reads_cache)
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
        for stream in self._streams.get(endpoint, {}).values():
            if stream.block_size is not None:
                return stream.block_size
        return self._taught_sizes.get(endpoint, self._default_block_size)

    def blocks(self, endpoint: EndpointId) -> int:
        """Confirmed blocks held, over all ranks."""
        return sum(len(stream.keys) for stream in self._streams.get(endpoint, {}).values())

    def known_loras(self) -> frozenset[str]:
        """LoRA names any engine has mentioned."""
        return self._loras

    # --- writing ---------------------------------------------------------------------------------------------
    def apply(self, endpoint: EndpointId, rank: int, batch: Batch) -> None:
        """Apply the events of one batch in order; what cannot be applied is reported and skipped."""
        for reason in batch.errors:
            self._problem(endpoint, reason)
        ranks = self._streams.setdefault(endpoint, {})
        if rank not in ranks:
            ranks[rank] = self._new_stream()
        for event in batch.events:
            match event:
                case BlockStored():
                    problem = self._store(endpoint, ranks[rank], event)
                    if problem is not None:
                        self._problem(endpoint, problem)
                case BlockRemoved():
                    self._remove(endpoint, ranks[rank], event)
                case AllCleared():
                    old = ranks[rank]
                    self._retire(old)
                    # Still the same engine: what is known of its shape stays.
                    ranks[rank] = self._new_stream(block_size=old.block_size, group=old.group)
                    self._forget_expected(endpoint)

    def set_block_size(self, endpoint: EndpointId, block_size: int) -> None:
        """What `cache_config_info` of the endpoint tells; its events overrule it."""
        if block_size > 0:
            self._taught_sizes[endpoint] = block_size

    def clear(self, endpoint: EndpointId, rank: int | None = None) -> None:
        """The engine restarted (one rank of it, or all): forget what it held and how its blocks looked."""
        ranks = self._streams.get(endpoint, {})
        for gone in [rank] if rank is not None else list(ranks):
            if gone in ranks:
                self._retire(ranks.pop(gone))
        self._forget_expected(endpoint)

    def remove(self, endpoint: EndpointId) -> None:
        """The endpoint is gone: forget everything about it."""
        self.clear(endpoint)
        self._streams.pop(endpoint, None)
        self._taught_sizes.pop(endpoint, None)

    def sweep(self, now: float, limit: int = 2_000) -> bool:
        """Free about `limit` blocks of retired streams and expired speculations; True: there is more. To be called every second or so."""
        self._prolong(now)
        if self._predictions is not None:
            self._predictions.settle(now)
        freed = self._speculations.sweep(now, limit)
        while self._retired and freed < limit:
            stream = self._retired[0]
            for key in islice(stream.keys.drain(), limit - freed):
                self._release(stream, key)
                freed += 1
            if not stream.keys:
                self._free_bits.append(self._retired.popleft().bit)
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
    def _bits_of(self, endpoint: EndpointId) -> int:
        bits = 0
        for stream in self._streams.get(endpoint, {}).values():
            bits |= stream.bit
        return bits

    def _match_chain(self, hits: Hits, chain: list[BlockKey], cap: int, asked: Iterable[tuple[int, EndpointId, int]], now: float) -> None:
        wanted = 0
        for _, _, bits in asked:
            wanted |= bits
        runs = self._runs(chain, wanted)
        for i, endpoint, bits in asked:
            run = runs.get(bits, 0) if bits & (bits - 1) == 0 else max(runs.get(bit, 0) for bit in _each_bit(bits))
            hits.confirmed[i] += run
            speculated = self._speculations.prefix(endpoint, chain, now)
            if speculated > run:
                run = max(self._run_from(chain, speculated, bit) for bit in _each_bit(bits)) if bits else speculated
            hits.blocks[i] += run
            hits.tokens[i] += (run if run < cap else cap) * hits.block_sizes[i]

    def _runs(self, chain: list[BlockKey], alive: int) -> dict[int, int]:
        """Leading blocks held by each of the streams whose bits are set; a stream that holds none has no entry."""
        runs: dict[int, int] = {}
        if not alive:
            return runs
        length, shards, mask = 0, self._holders.shards, self._holders.mask
        for length, key in enumerate(chain):
            held = shards[key & mask].get(key)
            still = alive & held if held is not None else 0
            if still != alive:
                if length:
                    for bit in _each_bit(alive ^ still):
                        runs[bit] = length
                alive = still
                if not alive:
                    return runs
        for bit in _each_bit(alive):
            runs[bit] = length + 1
        return runs

    def _run_from(self, chain: list[BlockKey], start: int, bit: int) -> int:
        """End of the run of confirmed blocks that begins at `start`."""
        holders = self._holders
        end = start
        while end < len(chain) and (holders.get(chain[end]) or 0) & bit:
            end += 1
        return end

    # --- applying --------------------------------------------------------------------------------------------
    def _store(self, endpoint: EndpointId, stream: _Stream, event: BlockStored) -> str | None:
        """Returns the reason for which (part of) the event could not be indexed."""
        if event.medium != GPU or event.kind not in FULL_ATTENTION_KINDS:
            return None
        size = event.block_size
        if size == 0 or len(event.tokens) != len(event.hashes) * size * TOKEN_BYTES:
            return "not_dense"
        if stream.block_size is None:
            stream.block_size, stream.group = size, event.group
        elif event.group != stream.group:
            return None
        elif size != stream.block_size:
            return "block_size"
        if event.lora is not None and event.lora not in self._loras:
            if len(self._loras) >= MAX_LORAS:
                return "too_many_loras"
            self._loras |= {event.lora}
        parent = root_key(event.lora, size) if event.parent is None else stream.keys.get(event.parent)
        if parent is None:
            return self._store_unrooted(stream, event)
        keys = chain_keys(parent, event.tokens, size, event.extras or ())
        for block, key in zip(event.hashes, keys, strict=True):
            self._add(stream, block, key)
        if self._predictions is not None:
            self._predictions.stored(endpoint, parent, event, keys)
        if stream.orphans:
            self._adopt(stream, event.hashes)
        return None

    def _store_unrooted(self, stream: _Stream, event: BlockStored) -> str | None:
        """The parent is unknown: blocks wait for it, up to the first whose own key is known from another copy."""
        width = event.block_size * TOKEN_BYTES
        parent = event.parent
        assert parent is not None
        problem = None
        for i, block in enumerate(event.hashes):
            tokens = event.tokens[i * width : (i + 1) * width]
            extras = event.extras[i] if event.extras else NO_EXTRAS
            parent_key, key = stream.keys.get(parent), stream.keys.get(block)
            if parent_key is not None and key is None:
                key = chain_keys(parent_key, tokens, event.block_size, (extras,))[0]
            if key is not None:
                self._add(stream, block, key)
                self._adopt(stream, [block])
            else:
                fitted = stream.orphans.add(Orphan(block, parent, tokens, extras))
                problem = problem or ("orphan" if fitted else "orphan_dropped")
            parent = block
        return problem

    def _adopt(self, stream: _Stream, parents: Iterable[EngineHash]) -> None:
        """Blocks that waited for one of these get their keys, and so do those that waited for them."""
        todo = list(parents)
        while todo:
            parent = todo.pop()
            for orphan in stream.orphans.adopt(parent):
                size = len(orphan.tokens) // TOKEN_BYTES
                key = chain_keys(stream.keys[parent], orphan.tokens, size, (orphan.extras,))[0]
                for _ in range(orphan.copies):
                    self._add(stream, orphan.hash, key)
                todo.append(orphan.hash)

    def _add(self, stream: _Stream, block: EngineHash, key: BlockKey) -> None:
        """One physical copy more."""
        if block in stream.keys:
            stream.copies[block] = stream.copies.get(block, 1) + 1
            return
        stream.keys[block] = key
        held = self._holders.get(key)
        if held is None:
            self._holders[key] = stream.bit
        elif held & stream.bit:
            stream.aliases[key] = stream.aliases.get(key, 1) + 1
        else:
            self._holders[key] = held | stream.bit

    def _problem(self, endpoint: EndpointId, reason: str) -> None:
        self._reporter.kv_event_error(endpoint, reason)
        if self._predictions is not None:
            self._predictions.unusable(endpoint, reason)

    def _remove(self, endpoint: EndpointId, stream: _Stream, event: BlockRemoved) -> None:
        """One physical copy less of each; blocks never indexed are none of ours."""
        if event.medium != GPU or (event.group is not None and event.group != stream.group):
            return
        gone: list[BlockKey] = []
        for block in event.hashes:
            copies = stream.copies.pop(block, 1)
            if copies > 1:
                if copies > 2:
                    stream.copies[block] = copies - 1
                continue
            key = stream.keys.pop(block)
            if key is None:
                stream.orphans.removed(block)
            else:
                self._release(stream, key)
                gone.append(key)
        if gone and self._predictions is not None:
            self._predictions.removed(endpoint, gone)

    def _release(self, stream: _Stream, key: BlockKey) -> None:
        """One engine hash less means this block."""
        aliases = stream.aliases.pop(key, 1)
        if aliases > 1:
            if aliases > 2:
                stream.aliases[key] = aliases - 1
            return
        held = self._holders[key] & ~stream.bit
        if held:
            self._holders[key] = held
        else:
            del self._holders[key]

    def _forget_expected(self, endpoint: EndpointId) -> None:
        self._speculations.forget(endpoint)
        if self._predictions is not None:
            self._predictions.forget(endpoint)

    # --- streams ---------------------------------------------------------------------------------------------
    def _new_stream(self, block_size: int | None = None, group: int | None = None) -> _Stream:
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit = 1 << self._bits
            self._bits += 1
        return _Stream(bit, block_size=block_size, group=group)

    def _retire(self, stream: _Stream) -> None:
        """Nobody asks for its bit from now on; `sweep` frees its blocks, then the bit."""
        self._retired.append(stream)


def _each_bit(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest
        bits ^= lowest
