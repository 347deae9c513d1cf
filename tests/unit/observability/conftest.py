"""A decision as the scheduler makes it: two candidates, one of them removed by a filter; a reporter, and what Prometheus reads of it."""

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from epp.domain import (
    Api,
    Decision,
    DecisionId,
    Endpoint,
    EndpointId,
    InferenceRequest,
    PluginScores,
    PrefixMatch,
    ProfileResult,
    TokenizedRequest,
    TokenState,
)
from epp.observability.prometheus import PrometheusReporter

A = Endpoint(EndpointId("team/a"), "10.0.0.1", 8000)
B = Endpoint(EndpointId("team/b"), "10.0.0.2", 8000)

Decide = Callable[..., Decision]


def make_decision(model: str = "tiny", *, number: int = 1, body: bool = True) -> Decision:
    """A decision for endpoint A; `body=False`: for a GET."""
    if not body:
        any_of = ProfileResult("header-only", [A, B], [], [], [A])
        return Decision(DecisionId(f"d{number}"), f"r{number}", any_of, {any_of.name: any_of}, None, None, scheduled=[A, B])
    scored = ProfileResult("default", [A], [PluginScores("prefix", 2.0, [0.75]), PluginScores("queue", 1.0, [1.0])], [2.5], [A])
    return Decision(
        DecisionId(f"d{number}"),
        f"r{number}",
        scored,
        {scored.name: scored},
        InferenceRequest(Api.CHAT, "/v1/chat/completions", model, {}, size_bytes=100),
        TokenizedRequest(TokenState.EXACT, [list(range(70))]),
        prefix={"precise": PrefixMatch(16, 4, [3, 0], 70, [48, 0])},
        scheduled=[B, A],
        duration_s=0.0003,
    )


@pytest.fixture
def decide() -> Decide:
    """Builds decisions."""
    return make_decision


@pytest.fixture
def registry() -> CollectorRegistry:
    """What Prometheus reads."""
    return CollectorRegistry()


@pytest.fixture
def reporter(registry: CollectorRegistry) -> PrometheusReporter:
    """Counts into `registry`."""
    return PrometheusReporter(registry, pool_name="pool", build_ref="v1")
