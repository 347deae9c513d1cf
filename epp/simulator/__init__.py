"""A model server that behaves like vLLM 0.32, and an independent witness of what epp does (spec/kv.md 1, 2, 6.6; docs/simulator.md).

Of this package it imports `epp.names` only. Block hashes, event encoding, chat templates and token ids are made here a
second time, from vLLM's definitions and with transformers itself, so that a mistake in the picker cannot cancel out
against the same mistake in its test bench.

    HTTP ─ api ─▶ bodies, conversations ─▶ tokenizing (thread) ─▶ answers ─▶ engine.Request
                                                                                │
                         pod (asyncio) ── start_step / finish_step ──▶ engine ──┴─▶ block_pool, hashing
                              │                                          │
                  inbox ◀─ tokens                          events ─▶ publisher (ZMQ PUB, replay ROUTER)

`engine`, `block_pool`, `hashing`, `events`, `answers`, `bodies` and `conversations` are pure: no clock, no I/O, no
asyncio. One process runs N pods on one event loop; `fleet.Fleet` starts and stops them, `command` is `epp simulate`.
`process` is a pod through its deaths and restarts, `faults` what goes wrong with what it publishes and computes, `relay` the
network that hangs, `dev_api` how all that is asked for.

Simulated: continuous batching with chunked prefill, the paged prefix cache with reference counts and LRU, KV events
and replay, metrics. Not simulated: preemption (a request waits until its whole answer fits), data-parallel ranks,
hybrid caches, multimodal prompts, /v1/responses, and chat templates that iterate over content parts.
"""
