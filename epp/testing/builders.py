"""Records for tests with everything but the interesting part filled in. Pure; imported by tests only."""

import random
from collections.abc import Mapping, Sequence

from epp.domain import Api, Endpoint, EndpointId, EndpointMetrics, InferenceRequest, TokenizedRequest, TokenState
from epp.scheduling.interfaces import Cycle


def make_endpoint(
    number: int = 0,
    *,
    waiting: int = 0,
    running: int = 0,
    kv_cache_usage: float = 0.0,
    labels: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint "default/pod-<number>" at 10.0.x.y:8000, scraped once."""
    address = f"10.0.{number >> 8 & 255}.{number & 255}"
    metrics = EndpointMetrics(waiting=waiting, running=running, kv_cache_usage=kv_cache_usage, updated_at=0.0)
    return Endpoint(EndpointId(f"default/pod-{number}"), address, 8000, labels or {}, metrics=metrics)


def make_request(*, max_tokens: int | None = None, size_bytes: int = 100) -> InferenceRequest:
    """A chat for model "m"."""
    return InferenceRequest(Api.CHAT, "/v1/chat/completions", "m", None, size_bytes, max_tokens=max_tokens)


def make_tokens(*lengths: int) -> TokenizedRequest:
    """Exact tokens of prompts of these lengths, 0, 1, 2, ... each."""
    return TokenizedRequest(TokenState.EXACT, [range(length) for length in lengths])


def make_cycle(
    endpoints: Sequence[Endpoint],
    *,
    tokens: TokenizedRequest | None = None,
    request: InferenceRequest | None = None,
    now: float = 0.0,
    seed: int = 0,
) -> Cycle:
    """A cycle over these endpoints; without `tokens` they are absent."""
    absent = TokenizedRequest(TokenState.ABSENT, reason="test")
    return Cycle(request or make_request(), tokens or absent, endpoints, now, random.Random(seed))  # noqa: S311  # a test's dice
