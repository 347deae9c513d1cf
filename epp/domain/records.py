"""The records of one request: what it says, what was decided about it and why, how it ended.

Made thousands of times a second, and compiled (setup.py): each has an `__init__` of its own, because the one that dataclasses
make is slow to call from C. The defaults stand there. Treated as immutable where nothing else is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from epp.domain.facts import (
    DecisionId,
    Endpoint,
    PrefixMatch,
    TokenizedRequest,
    Usage,
)
from epp.domain.kinds import AnswerFormat, Api, EndCause
from epp.names import DEFAULT_FLOW

_NO_MATCHES: Final[Mapping[str, PrefixMatch]] = MappingProxyType({})


@dataclass(slots=True, init=False)
class InferenceRequest:
    """What one request says, as far as routing needs it (produced by epp.requests)."""

    api: Api
    path: str
    model: str
    body: Mapping[str, object] | None
    """The decoded JSON object with the client's key order; None where the body is not looked at or was refused by the fast decoder.

    Whole only where a plugin reads bodies (`PluginType.reads_bodies`); what the fields below were taken from otherwise.
    """
    size_bytes: int
    stream: bool
    max_tokens: int | None
    cache_salt: str | None
    priority: int | None
    """What the client asks the engine for (vLLM's `priority`: less is sooner)."""
    unreadable: str | None
    """Why the body could not be read although a model server might accept it: routed without tokens."""
    target_model: str
    """The name the model server is asked for in place of the body's; empty: the body stays as it is."""
    answer: AnswerFormat
    skip_response: bool
    """Nothing in the answer is of interest."""
    flow: str
    """Whose request it is, as its headers say."""

    def __init__(
        self,
        api: Api,
        path: str,
        model: str,
        body: Mapping[str, object] | None,
        size_bytes: int,
        stream: bool = False,
        max_tokens: int | None = None,
        cache_salt: str | None = None,
        priority: int | None = None,
        unreadable: str | None = None,
        target_model: str = "",
        answer: AnswerFormat = AnswerFormat.JSON,
        skip_response: bool = False,
        flow: str = DEFAULT_FLOW,
    ) -> None:
        self.api = api
        self.path = path
        self.model = model
        self.body = body
        self.size_bytes = size_bytes
        self.stream = stream
        self.max_tokens = max_tokens
        self.cache_salt = cache_salt
        self.priority = priority
        self.unreadable = unreadable
        self.target_model = target_model
        self.answer = answer
        self.skip_response = skip_response
        self.flow = flow

    @property
    def served_model(self) -> str:
        """The name the model server is asked for."""
        return self.target_model or self.model


@dataclass(slots=True, init=False)
class PluginScores:
    """What one scorer said in one cycle; `scores` is parallel to `Decision.candidates`."""

    name: str
    weight: float
    scores: list[float]

    def __init__(
        self,
        name: str,
        weight: float,
        scores: list[float],
    ) -> None:
        self.name = name
        self.weight = weight
        self.scores = scores


@dataclass(slots=True, init=False)
class ProfileResult:
    """One profile run: who took part, what everybody scored, who was chosen (best first)."""

    name: str
    candidates: Sequence[Endpoint]
    scores: list[PluginScores]
    totals: list[float]
    chosen: list[Endpoint]

    def __init__(
        self,
        name: str,
        candidates: Sequence[Endpoint],
        scores: list[PluginScores],
        totals: list[float],
        chosen: list[Endpoint],
    ) -> None:
        self.name = name
        self.candidates = candidates
        self.scores = scores
        self.totals = totals
        self.chosen = chosen


@dataclass(slots=True, init=False)
class Decision:
    """Everything one scheduling cycle decided, and why."""

    id: DecisionId
    request_id: str
    primary: ProfileResult
    profiles: Mapping[str, ProfileResult]
    request: InferenceRequest | None
    tokens: TokenizedRequest | None
    prefix: Mapping[str, PrefixMatch]
    """By producer name; its lists are parallel to `scheduled`."""
    scheduled: Sequence[Endpoint]
    """The candidates the producers saw, before any filter."""
    decided_at: float
    """Monotonic seconds."""
    duration_s: float
    """Wall time of the synchronous decide step."""

    def __init__(
        self,
        id: DecisionId,
        request_id: str,
        primary: ProfileResult,
        profiles: Mapping[str, ProfileResult],
        request: InferenceRequest | None,
        tokens: TokenizedRequest | None,
        prefix: Mapping[str, PrefixMatch] = _NO_MATCHES,
        scheduled: Sequence[Endpoint] = (),
        decided_at: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        self.id = id
        self.request_id = request_id
        self.primary = primary
        self.profiles = profiles
        self.request = request
        self.tokens = tokens
        self.prefix = prefix
        self.scheduled = scheduled
        self.decided_at = decided_at
        self.duration_s = duration_s

    def forget_prompts(self) -> None:
        """Let go of the body and the token ids, hundreds of KB that only the choice needed; the decision itself lives as long as its answer."""
        if self.request is not None:
            self.request.body = None
        if self.tokens is not None:
            self.tokens.prompts, self.tokens.exact_tokens, self.tokens.media = (), None, ()

    @property
    def endpoint(self) -> Endpoint:
        """The primary endpoint."""
        return self.primary.chosen[0]

    @property
    def destination(self) -> str:
        """Value of the destination header: comma list of "ip:port", best first."""
        chosen = self.primary.chosen
        return chosen[0].host_port if len(chosen) == 1 else ",".join([endpoint.host_port for endpoint in chosen])


@dataclass(slots=True, init=False)
class RequestEnd:
    """The end of an answer, told by Envoy's access log or by the end of the ext_proc stream (spec/protocol.md 10.1)."""

    decision_id: DecisionId
    cause: EndCause
    status: int | None
    served: str | None
    """"ip:port" of the endpoint that really served."""
    duration_s: float | None
    first_upstream_byte_s: float | None
    """The first byte of the response headers; not a time to first token (spec/protocol.md 10.1)."""
    attempts: int | None
    response_flags: tuple[str, ...]
    bytes_received: int | None
    bytes_sent: int | None
    origin: str | None
    """Names the request as only the data plane can, where `decision_id` is empty because Envoy never took it over."""
    # --- known only where the answer went through ext_proc; seconds since the request was here whole
    streamed: bool | None
    """It was asked for or sent as a stream of events."""
    first_chunk_s: float | None
    """The first chunk that was not empty: a time to first token, where it is streamed."""
    last_chunk_s: float | None
    usage: Usage | None

    def __init__(
        self,
        decision_id: DecisionId,
        cause: EndCause,
        status: int | None = None,
        served: str | None = None,
        duration_s: float | None = None,
        first_upstream_byte_s: float | None = None,
        attempts: int | None = None,
        response_flags: tuple[str, ...] = (),
        bytes_received: int | None = None,
        bytes_sent: int | None = None,
        origin: str | None = None,
        streamed: bool | None = None,
        first_chunk_s: float | None = None,
        last_chunk_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.decision_id = decision_id
        self.cause = cause
        self.status = status
        self.served = served
        self.duration_s = duration_s
        self.first_upstream_byte_s = first_upstream_byte_s
        self.attempts = attempts
        self.response_flags = response_flags
        self.bytes_received = bytes_received
        self.bytes_sent = bytes_sent
        self.origin = origin
        self.streamed = streamed
        self.first_chunk_s = first_chunk_s
        self.last_chunk_s = last_chunk_s
        self.usage = usage


@dataclass(slots=True, init=False)
class StreamClosed:
    """What an ext_proc stream had come to when it closed."""

    routed: bool
    """The data plane was sent the whole answer to the request phase; otherwise the request never went on."""
    response_seen: bool
    """Some part of the answer came by."""
    response_complete: bool
    """The answer came by to its end."""
    logged: bool
    """This data plane also sends its access log to us."""
    bodies_sent: bool
    """This data plane is configured to send the bodies of answers through here: what did not come by was cut off."""

    def __init__(
        self,
        routed: bool,
        response_seen: bool,
        response_complete: bool,
        logged: bool,
        bodies_sent: bool = False,
    ) -> None:
        self.routed = routed
        self.response_seen = response_seen
        self.response_complete = response_complete
        self.logged = logged
        self.bodies_sent = bodies_sent
