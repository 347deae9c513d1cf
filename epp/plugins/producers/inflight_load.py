"""inflight-load-producer: what this picker has sent to each endpoint and not yet seen end (spec/plugins.md 8.4).

Owns the in-flight ledger: one entry a decision, one load an endpoint. An entry holds the very Load objects it was added
to, so that giving back is exact in any order, also when an endpoint left and came back under its name meanwhile; no
number is ever clamped, and none can become negative.

Changed by `decided`, `prefill_ended`, `ended`, `endpoint_removed` and `expire`, all on the event loop. llm-d gives the tokens back at the
first chunk of the answer; here those of the prompt are given back when its endpoint's KV events show that it has been
computed, and at the answer's end where none do: prompts that were cached whole store no block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from epp.domain import Decision, DecisionId, EndpointId, RequestEnd, TokenState
from epp.scheduling.interfaces import Cycle, DataKey, InFlight, in_flight_key, prefix_match_key
from epp.scheduling.params import NO_EFFECT, ReadsPrefixMatches
from epp.scheduling.registry import Collaborators, PluginType, Role

TYPE = "inflight-load-producer"

# The director closes a decision whose end nobody told after 600 s; an entry older than this slipped through there.
MAX_AGE_S = 900.0

# The estimate backend's rule of thumb (spec/plugins.md 8.3), for requests without token ids.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightLoadParams(ReadsPrefixMatches):
    """Parameters of inflight-load-producer."""

    add_estimated_output_tokens: bool = False
    """Count the answer's tokens too, estimated."""
    output_ratio: float = 1.5
    """Output tokens per input token."""
    max_estimated_output_tokens: int | None = None
    sync_cross_replica_state: Annotated[bool, NO_EFFECT] = True

    def __post_init__(self) -> None:
        if self.output_ratio < 0:
            raise ValueError("outputRatio: must not be negative")
        if self.max_estimated_output_tokens is not None and self.max_estimated_output_tokens < 0:
            raise ValueError("maxEstimatedOutputTokens: must not be negative")


@dataclass(slots=True)
class Load:
    """What is under way at one endpoint."""

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Taken:
    """What one decision added to one endpoint."""

    endpoint: EndpointId
    load: Load
    prompt: int
    """Tokens to be computed of the prompt; 0 once they are."""
    output: int
    """Tokens expected of the answer, if they are counted."""


@dataclass(slots=True)
class _Entry:
    decided_at: float
    taken: list[_Taken]


class InFlightLoadProducer:
    """Counts requests and uncached tokens from decision to end."""

    def __init__(self, name: str, params: InFlightLoadParams, collaborators: Collaborators, max_age_s: float = MAX_AGE_S) -> None:
        self.name = name
        self._params = params
        self._max_age_s = max_age_s
        self._key = in_flight_key(name)
        producer = params.prefix_match_info_producer_name
        self._prefix_key = prefix_match_key(producer) if producer else None
        self._loads: dict[EndpointId, Load] = {}
        self._entries: dict[DecisionId, _Entry] = {}

    def produces(self) -> Sequence[DataKey[Any]]:
        return (self._key,)

    def consumes(self) -> Sequence[DataKey[Any]]:
        return () if self._prefix_key is None else (self._prefix_key,)

    def produce(self, cycle: Cycle) -> None:
        self.expire(cycle.now)
        idle = Load()
        loads = [self._loads.get(endpoint.id, idle) for endpoint in cycle.endpoints]
        cycle.put(self._key, InFlight([load.requests for load in loads], [load.tokens for load in loads]))

    def decided(self, cycle: Cycle, decision: Decision) -> None:
        taken = []
        for result in decision.profiles.values():
            endpoint = result.chosen[0].id
            load = self._loads.setdefault(endpoint, Load())
            prompt = _input_tokens(cycle)
            took = _Taken(endpoint, load, self._uncached(cycle, endpoint, prompt), self._output_tokens(cycle, prompt))
            load.requests += 1
            load.tokens += took.prompt + took.output
            taken.append(took)
        self._entries[decision.id] = _Entry(cycle.now, taken)

    def prefill_ended(self, decision_id: DecisionId, endpoint: EndpointId, now: float) -> None:
        entry = self._entries.get(decision_id)
        for took in entry.taken if entry is not None else ():
            if took.endpoint == endpoint:
                took.load.tokens -= took.prompt
                took.prompt = 0

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        entry = self._entries.pop(decision.id, None)
        if entry is not None:
            _give_back(entry)

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        self._loads.pop(endpoint, None)

    def expire(self, now: float) -> int:
        """Give back what is older than the bounded age; returns how many decisions. O(expired): entries are in order of time."""
        expired = 0
        while self._entries:
            oldest = next(iter(self._entries))
            if now - self._entries[oldest].decided_at <= self._max_age_s:
                break
            _give_back(self._entries.pop(oldest))
            expired += 1
        return expired

    def _uncached(self, cycle: Cycle, endpoint: EndpointId, prompt: int) -> int:
        """Tokens of the prompt that the endpoint has to compute."""
        match = None if self._prefix_key is None else cycle.get(self._prefix_key)
        if match is None:
            return prompt
        missing = match.total_blocks - match.matched_blocks[cycle.position[endpoint]]
        tail = prompt - match.total_blocks * match.block_size
        return max(0, missing * match.block_size) + max(0, tail)

    def _output_tokens(self, cycle: Cycle, prompt: int) -> int:
        params, request = self._params, cycle.request
        if not params.add_estimated_output_tokens or prompt <= 0:
            return 0
        limits = (request.max_tokens if request else None, params.max_estimated_output_tokens)
        return min([round(prompt * params.output_ratio), *(limit for limit in limits if limit is not None)])


def _input_tokens(cycle: Cycle) -> int:
    if cycle.tokens is not None and cycle.tokens.state is not TokenState.ABSENT:
        return cycle.tokens.token_count
    return 0 if cycle.request is None else cycle.request.size_bytes // BYTES_PER_TOKEN


def _give_back(entry: _Entry) -> None:
    for took in entry.taken:
        took.load.requests -= 1
        took.load.tokens -= took.prompt + took.output


PLUGIN = PluginType(TYPE, InFlightLoadParams, InFlightLoadProducer, frozenset((Role.PRODUCER, Role.ENDPOINT_EXTRACTOR)), reads_bodies=False)
