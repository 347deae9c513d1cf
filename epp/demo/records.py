"""The records of a run: what the client saw, what the picker decided, what the pods announced. Plain data, shared by the room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Mode(Enum):
    """A way of routing. The value names it in results and on the command line."""

    PRECISE = "precise"
    LOAD = "load"
    ROUND_ROBIN = "round-robin"

    @property
    def has_picker(self) -> bool:
        """Whether epp takes part."""
        return self is not Mode.ROUND_ROBIN


@dataclass(slots=True)
class Played:
    """One request as the client saw it. Times in Unix seconds."""

    request_id: str
    tenant: str
    conversation: str
    turn: int
    """From 1."""
    messages: Sequence[Mapping[str, str]]
    sent: float
    first_token: float | None = None
    """When the first piece of the answer arrived."""
    ended: float = 0.0
    status: int = 0
    pod: str = ""
    """The endpoint that answered, as it says itself."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens the endpoint did not have to compute, as its usage says."""
    answer_tokens: int = 0
    answer: str = ""
    error: str | None = None
    """Why there is no whole answer; None: there is."""

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token; only for requests that have one."""
        assert self.first_token is not None
        return self.first_token - self.sent


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint as the picker saw it for one request."""

    pod: str
    total: float | None
    """Weighted sum; None: a filter had removed it."""
    scores: Mapping[str, float]
    """Raw, by scorer."""
    matched_tokens: int
    matched_blocks: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision, from the decision log."""

    request_id: str
    decided: float
    """Unix seconds."""
    pod: str
    weights: Mapping[str, float]
    """By scorer."""
    candidates: Sequence[Candidate]
    total_blocks: int
    """Full blocks of the prompt; 0 where the picker did not look."""
    duration_s: float

    @property
    def predicted_tokens(self) -> int:
        """Hit tokens the picker expected of its choice."""
        return next(candidate.matched_tokens for candidate in self.candidates if candidate.pod == self.pod)


@dataclass(frozen=True, slots=True)
class Announcement:
    """One batch of KV events of one pod: what it stored and removed, as blocks named by `blocks.BlockNames`."""

    pod: str
    time: float
    """Unix seconds, the pod's own stamp."""
    removed: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()


class Cause(Enum):
    """Why a prediction and the truth differ."""

    EVICTED = "evicted"
    """Blocks went away between decision and prefill."""
    STILL_COMPUTING = "still computing"
    """Blocks another request was about to compute were counted, and came too late."""
    COMPUTED_MEANWHILE = "computed meanwhile"
    """Another request computed blocks between decision and prefill."""
    SERVED_ELSEWHERE = "served elsewhere"
    """Envoy sent the request to another endpoint than the chosen one."""
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one prediction differs from the hit the endpoint reported."""

    request_id: str
    pod: str
    predicted_tokens: int
    actual_tokens: int
    cause: Cause
    by: tuple[str, ...]
    """The requests that caused it."""
    sentence: str


@dataclass(slots=True)
class ModeRun:
    """Everything one mode left behind, requests in the order they were sent."""

    mode: Mode
    pods: Sequence[str]
    block_size: int
    duration_s: float
    requests: Sequence[Played]
    bound_tokens: Sequence[int]
    """Parallel to `requests`: hits with one infinite cache."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """By request id; empty without a picker."""
    stored: Mapping[str, int] = field(default_factory=dict)
    """Requests by what their pods' events said of the blocks they were expected to fill: confirmed, contradicted, unseen."""
    explanations: Sequence[Explanation] = ()
    """One for each request whose hit was not the predicted one."""
