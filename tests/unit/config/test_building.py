"""From a configuration to a working scheduler, and what is said about other people's plugins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from epp import config
from epp.config import EffectiveConfig
from epp.domain import DecisionId, EndCause, Endpoint, EndpointId, RequestEnd, TokenizedRequest
from epp.errors import ConfigError
from epp.reporter import Reporter
from epp.scheduling import registry
from epp.scheduling.interfaces import Cycle, DataKey, PrefixHits
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators, EmptyIndex, PluginType, Registry, Role
from epp.testing.builders import make_cycle, make_endpoint, make_request, make_tokens

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
REGISTRY = registry.load()


@dataclass
class Hits:
    tokens: list[int]
    offloaded: dict[str, list[int]] = field(default_factory=dict)


class Index(EmptyIndex):
    """Holds whole prompts where they were speculated."""

    def __init__(self) -> None:
        self.holders: set[EndpointId] = set()

    def match(self, tokens: TokenizedRequest, endpoints: Sequence[EndpointId], now: float) -> Hits:
        return Hits([tokens.token_count if endpoint in self.holders else 0 for endpoint in endpoints])

    def speculate(self, hits: PrefixHits, endpoint: EndpointId, until: float) -> None:
        self.holders.add(endpoint)

    def unspeculate(self, endpoint: EndpointId) -> None:
        self.holders.discard(endpoint)


def test_the_perf_configuration_schedules() -> None:
    """A second request with the same prompt follows the first one while that one's end gives the load back."""
    built = config.build(config.load_file(CONFIGS / "precise-prefix-perf.yaml"), Collaborators(Index()), Reporter())
    fleet = [make_endpoint(i) for i in range(4)]
    first = built.scheduler.schedule(make_cycle(fleet, tokens=make_tokens(64)), decision_id=DecisionId("1"), request_id="1")
    built.scheduler.ended(first, RequestEnd(first.id, EndCause.FINISHED))
    second = built.scheduler.schedule(make_cycle(fleet, tokens=make_tokens(64), seed=9), decision_id=DecisionId("2"), request_id="2")
    assert second.endpoint is first.endpoint
    assert second.prefix["precise-prefix-cache-producer"].matched_blocks[fleet.index(first.endpoint)] == 4
    assert {said.name: said.weight for said in second.primary.scores} == {
        "active-request-scorer": 4,
        "kv-cache-utilization-scorer": 2,
        "prefix-cache-scorer": 2,
        "no-hit-lru-scorer": 2,
    }


def test_load_spreads_while_requests_are_under_way() -> None:
    """Four requests at once without a common prefix reach four endpoints: each decision counts before the next one."""
    built = config.build(config.load_file(CONFIGS / "precise-prefix-perf.yaml"), Collaborators(Index()), Reporter())
    fleet = [make_endpoint(i) for i in range(4)]
    cycles = [make_cycle(fleet, seed=seed) for seed in range(4)]
    chosen = [built.scheduler.schedule(cycle, decision_id=DecisionId(str(i)), request_id="").endpoint.id for i, cycle in enumerate(cycles)]
    assert sorted(chosen) == [endpoint.id for endpoint in fleet]


def test_without_an_index_nothing_matches() -> None:
    """A replay or a check may build without one."""
    built = config.build(config.load_file(CONFIGS / "precise-prefix.yaml"), Collaborators(), Reporter())
    decision = built.scheduler.schedule(make_cycle([make_endpoint()], tokens=make_tokens(640)), decision_id=DecisionId("1"), request_id="1")
    assert decision.prefix["precise-prefix-cache-producer"].matched_blocks == [0]


class Third:
    """Somebody's plugin: may read, write and score."""

    def __init__(self, name: str, params: object, collaborators: Collaborators) -> None:
        self.name = name

    def score(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> list[float]:
        return [1.0] * len(candidates)


class Circular(Third):
    """A producer that reads from another one of its kind."""

    def produces(self) -> Sequence[DataKey[Any]]:
        return (DataKey("Thing", self.name),)

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (DataKey("Thing", "b" if self.name == "a" else "a"),)

    def produce(self, cycle: Cycle) -> None:
        pass


class NeedsSession(Third):
    """A scorer that reads what llm-d has a producer for, and epp has not."""

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (DataKey("SessionID", "session-id-producer"),)


class Misled(Third):
    """A scorer that reads from a plugin that writes nothing."""

    def consumes(self) -> Sequence[DataKey[Any]]:
        return (DataKey("InFlightLoad", "queue-scorer"),)


def broken(name: str, params: object, collaborators: Collaborators) -> object:
    raise KeyError("oops")


def choosy(name: str, params: object, collaborators: Collaborators) -> object:
    raise ConfigError(f"plugin {name!r} needs a licence")


def with_plugin(factory: Callable[[str, Any, Collaborators], object], role: Role, plugins: str, **said: bool) -> EffectiveConfig:
    mine = PluginType("mine", NoParams, factory, frozenset((role,)), **said)
    text = f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{plugins}]"
    return config.load(text, "c.yaml", Registry([*REGISTRY.values(), mine]))


def test_a_plugin_of_another_package_takes_part() -> None:
    """A type from any registry is used like ours."""
    built = config.build(with_plugin(Third, Role.SCORER, "{type: mine}"), Collaborators(), Reporter())
    decision = built.scheduler.schedule(make_cycle([make_endpoint()]), decision_id=DecisionId("1"), request_id="1")
    assert [said.name for said in decision.primary.scores] == ["mine"]


def test_bodies_are_read_whole_for_a_plugin_that_does_not_say_it_needs_none() -> None:
    """Somebody's plugin gets what it asks for; load-only routing and plugins that say so leave prompts alone."""
    assert with_plugin(Third, Role.SCORER, "{type: mine}, {type: queue-scorer}").reads_bodies
    assert not with_plugin(Third, Role.SCORER, "{type: mine}, {type: queue-scorer}", reads_bodies=False).reads_bodies
    assert with_plugin(Third, Role.SCORER, "{type: token-producer}, {type: queue-scorer}").reads_bodies
    assert config.load_file(CONFIGS / "precise-prefix-perf.yaml").reads_bodies


class Unreadable(dict[str, object]):
    """A body that tells on whoever looks into it."""

    def get(self, key: str, default: object = None) -> object:
        raise AssertionError(f"{key} was looked for")

    __getitem__ = __contains__ = __iter__ = __len__ = items = keys = values = get  # type: ignore[assignment]


class Failures(Reporter):
    """Remembers who failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        self.failed.append(plugin)


def test_our_plugins_look_into_bodies_only_where_they_say_so() -> None:
    """Otherwise they would see bodies without prompts."""
    types = (
        "queue-scorer, kv-cache-utilization-scorer, active-request-scorer, no-hit-lru-scorer, prefix-cache-scorer, decode-filter, "
        "inflight-load-producer, approx-prefix-cache-producer, max-score-picker, single-profile-handler"
    )
    loaded = with_plugin(Third, Role.SCORER, ", ".join(f"{{type: {name}}}" for name in types.split(", ")))
    failures = Failures()
    scheduler = config.build(loaded, Collaborators(), failures).scheduler
    request = make_request()
    request.body = Unreadable()
    decision = scheduler.schedule(make_cycle([make_endpoint()], request=request), decision_id=DecisionId("1"), request_id="1")
    scheduler.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, status=200))
    assert failures.failed == ["approx-prefix-cache-producer"]


@pytest.mark.parametrize(
    ("factory", "role", "plugins", "message"),
    [
        (broken, Role.SCORER, "{type: mine}", "line 3: plugins[0]: plugin 'mine' of type 'mine' cannot be made: 'oops'"),
        (choosy, Role.SCORER, "{type: mine}", "line 3: plugins[0]: plugin 'mine' needs a licence"),
        (Third, Role.PICKER, "{type: mine}", "claims to be a picker, but lacks methods of Picker"),
        (Circular, Role.PRODUCER, "{type: mine, name: a}, {type: mine, name: b}", "producers read each other in a circle: "),
        (NeedsSession, Role.SCORER, "{type: mine}", "reads SessionID of 'session-id-producer', which is known, not supported yet"),
        (Misled, Role.SCORER, "{type: mine}, {type: queue-scorer}", "of 'queue-scorer', which produces no such thing"),
    ],
)
def test_a_plugin_that_cannot_work_is_refused_by_name(
    factory: Callable[[str, Any, Collaborators], object], role: Role, plugins: str, message: str
) -> None:
    """At start, with line and reason, not at the first request."""
    with pytest.raises(ConfigError) as caught:
        with_plugin(factory, role, plugins)
    assert message in str(caught.value)
