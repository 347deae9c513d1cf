"""vLLM's own KV-cache manager without a model, driven over stdin: `python block_manager.py`, in vLLM's environment.

A scheduler of a few lines around it: chunked prefill under a token budget, then one token a request and step; who finds no room
preempts who came last, which is computed anew. A line that is a JSON object begins an engine: groups ([kind, block size, window] each),
blocks, budget, speculates. One that is [requests, steps] queues requests ([id, tokens, answer's length, whether it asks for logprobs, salt]
each), takes steps, and is answered by one line: {"payloads": [hex of a KVEventBatch each], "ended": {id: cached tokens}, "left": requests
under way, "preempted": how often any was, "held": blocks of the first group that can be found}.
"""

import json
import os
import sys
import time
from collections import deque

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import msgspec
import torch
from vllm.distributed.kv_events import KVEventBatch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request

MAX_RUNNING = 32


def spec(kind, block_size, window):
    """One cache group's."""
    shape = {"block_size": block_size, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    return SlidingWindowSpec(**shape, sliding_window=window) if kind == "window" else FullAttentionSpec(**shape)


class Engine:
    """One engine core, as far as blocks go."""

    def __init__(self, groups, blocks, budget, speculates):
        specs = [spec(*group) for group in groups]
        largest, smallest = max(each.block_size for each in specs), min(each.block_size for each in specs)
        config = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec([str(i)], each, is_eagle_group=speculates and i == 0) for i, each in enumerate(specs)],
            prefix_cache_retention_interval=0 if len(specs) > 1 else None,
            hash_block_size=smallest,
            cache_hit_alignment_tokens=largest,
        )
        self.manager = KVCacheManager(
            config,
            max_model_len=8192,
            scheduler_block_size=largest,
            hash_block_size=smallest,
            enable_kv_cache_events=True,
            use_eagle=speculates,
        )
        self.hasher = get_request_block_hasher(smallest, sha256)
        self.budget = budget
        self.waiting = deque()
        self.running = []
        self.found = {}
        self.ended = {}
        self.preempted = 0
        self.next_token = 1

    def queue(self, name, tokens, answer, logprobs, salt):
        sampling = SamplingParams(max_tokens=answer, prompt_logprobs=1 if logprobs else None)
        self.waiting.append(Request(name, tokens, sampling, None, cache_salt=salt, block_hasher=self.hasher))

    def step(self):
        """Schedule, publish, and take what the model would have made of it."""
        manager, left, preempts, scheduled = self.manager, self.budget, False, {}
        manager.new_step_starts()
        for request in list(self.running):
            count = min(request.num_tokens - request.num_computed_tokens, left)
            while count > 0 and request in self.running and manager.allocate_slots(request, count) is None:
                last = self.running.pop()
                manager.free(last)
                last.num_computed_tokens, last.num_preemptions, preempts = 0, last.num_preemptions + 1, True
                left += scheduled.pop(last.request_id, 0)
                self.waiting.appendleft(last)
                self.preempted += 1
            if count > 0 and request in self.running:
                scheduled[request.request_id] = count
                left -= count
        while self.waiting and left > 0 and not preempts and len(self.running) < MAX_RUNNING:
            request = self.waiting[0]
            blocks, cached, _ = manager.get_computed_blocks(request)
            count = min(request.num_tokens - cached, left)
            if manager.allocate_slots(request, count, cached, blocks, full_sequence_must_fit=True) is None:
                break
            self.running.append(self.waiting.popleft())
            self.found.setdefault(request.request_id, cached)
            request.num_computed_tokens = cached
            scheduled[request.request_id] = count
            left -= count
        events = manager.take_events()
        for request in list(self.running):
            request.num_computed_tokens += scheduled.get(request.request_id, 0)
            if request.num_computed_tokens < request.num_tokens or request.request_id not in scheduled:
                continue
            if request.num_output_tokens < request.max_tokens:
                self.next_token += 1
                request.append_output_token_ids(100_000 + self.next_token % 50_000)
            else:
                self.running.remove(request)
                manager.free(request)
                self.ended[request.request_id] = self.found.pop(request.request_id)
        return events


def main():
    """Answer line by line."""
    init_none_hash(sha256)
    engine = None
    encode = msgspec.msgpack.Encoder().encode
    for line in sys.stdin:
        said = json.loads(line)
        if isinstance(said, dict):
            engine = Engine(**said)
            continue
        requests, steps = said
        for request in requests:
            engine.queue(*request)
        batches = [events for events in (engine.step() for _ in range(steps)) if events]
        answer = {
            "payloads": [encode(KVEventBatch(ts=time.time(), events=events)).hex() for events in batches],
            "ended": engine.ended,
            "left": len(engine.waiting) + len(engine.running),
            "preempted": engine.preempted,
            "held": sum(key[-4:] == bytes(4) for key in engine.manager.block_pool.cached_block_hash_to_block._cache),
        }
        engine.ended = {}
        print(json.dumps(answer), flush=True)


main()
