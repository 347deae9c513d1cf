"""The nouns of the picker, shared by every room: endpoints, requests, tokens, decisions.

Plain records without behaviour beyond derived properties; nothing here does I/O or knows a clock. Records built
once per request use slots and are treated as immutable; snapshots are frozen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, NewType

EndpointId = NewType("EndpointId", str)
"""Stable identity of one endpoint: "namespace/name" (one model server, or one data-parallel rank of it)."""

DecisionId = NewType("DecisionId", str)
"""Ours, unique per decision; travels to Envoy as dynamic metadata and comes back in the access log."""

BlockKey = NewType("BlockKey", int)
"""Our own 60-bit chain hash of a block and all before it. Valid in this process only."""

EngineHash = NewType("EngineHash", int)
"""What an engine calls a block, mixed so that no engine can choose the value. Valid in this process only."""

GPU: Final = "gpu"
CPU: Final = "cpu"
STORAGE: Final = "storage"
# SGLang's names, and none at all.
_MEDIUM_NAMES: Final = MappingProxyType({"": GPU, "cpu_pinned": CPU, "disk": STORAGE})


def medium_name(raw: str) -> str:
    """The one name of what blocks are held in: lower case, and ours where engines have several."""
    lower = raw.lower()
    return _MEDIUM_NAMES.get(lower, lower)


TokenIds = Sequence[int]

NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """What the last successful scrape of an endpoint said (spec/protocol.md 1.6)."""

    waiting: int = 0
    """Requests queued in the engine."""
    running: int = 0
    """Requests the engine works on."""
    kv_cache_usage: float = 0.0
    """Share of KV blocks in use, 0..1."""
    block_size: int | None = None
    """Tokens a block, as cache_config_info tells."""
    num_blocks: int | None = None
    """KV blocks of the engine."""
    active_loras: frozenset[str] = frozenset()
    waiting_loras: frozenset[str] = frozenset()
    max_loras: int = 0
    asleep: bool = False
    """Its weights are away, and its KV cache with them (vLLM's sleep)."""
    prefix_queries: float | None = None
    """Prompt tokens it has looked up in its prefix cache since it began; None: it does not tell."""
    prefix_hits: float | None = None
    """Those of them it found; None: it does not tell."""
    updated_at: float | None = None
    """Monotonic seconds of the scrape; None: never scraped."""


NEVER_SCRAPED = EndpointMetrics()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One routable ip:port."""

    id: EndpointId
    address: str
    """IP literal, without brackets."""
    port: int
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    rank: int = 0
    """Index among the endpoints of one pod (data-parallel rank)."""
    metrics: EndpointMetrics = NEVER_SCRAPED
    host_port: str = field(init=False, repr=False, compare=False)
    """ "ip:port" as it goes on the wire, IPv6 in brackets; asked for several times a request."""

    def __post_init__(self) -> None:
        written = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        object.__setattr__(self, "host_port", written)


class Api(Enum):
    """Which API a request speaks; decides how its prompt is found."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's, count_tokens included."""
    GENERATE = "generate"
    """vLLM's token-in path."""
    OPAQUE = "opaque"
    """Routed by model and load only: pass-through paths and APIs without a prompt of tokens."""


class AnswerFormat(Enum):
    """How an answer states what it used."""

    JSON = "json"
    """As a JSON document, or as server-sent events of such."""
    VLLM_GENERATE = "vllm-generate"
    """As messages of vLLM's engine service, Generate."""
    VLLM_EMBED = "vllm-embed"
    """The same, Embed."""
    HTTP_BODY = "http-body"
    """As JSON within gRPC messages of the type google.api.HttpBody."""


@dataclass(slots=True)
class InferenceRequest:
    """What one request says, as far as routing needs it (produced by epp.requests)."""

    api: Api
    path: str
    model: str
    body: Mapping[str, object] | None
    """The decoded JSON object with the client's key order; None where the body is not looked at or was refused by the fast decoder."""
    size_bytes: int
    stream: bool = False
    max_tokens: int | None = None
    cache_salt: str | None = None
    priority: int | None = None
    """What the client asks the engine for (vLLM's `priority`: less is sooner)."""
    unreadable: str | None = None
    """Why the body could not be read although a model server might accept it: routed without tokens."""
    target_model: str = ""
    """The name the model server is asked for in place of the body's; empty: the body stays as it is."""
    answer: AnswerFormat = AnswerFormat.JSON
    skip_response: bool = False
    """Nothing in the answer is of interest."""

    @property
    def served_model(self) -> str:
        """The name the model server is asked for."""
        return self.target_model or self.model


class TokenState(Enum):
    """How far the token ids of a request can be trusted."""

    EXACT = "exact"
    PARTIAL = "partial"
    """Some leading tokens of each prompt are the engine's; what follows is not known, or not exact."""
    ABSENT = "absent"
    """There are none: whoever needs tokens abstains."""


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """A picture, sound or film among the tokens of a prompt; which one it is enters the engine's block hashes (spec/kv.md 1.8)."""

    identifier: str
    """The engine's hash of the content, or the id the client gave it."""
    offset: int
    """Index of its first placeholder token."""
    length: int
    """Placeholder tokens."""


@dataclass(slots=True)
class TokenizedRequest:
    """The token ids of a request's prompts, one list a prompt, and what else enters the engine's block hashes."""

    state: TokenState
    prompts: Sequence[TokenIds] = ()
    reason: str | None = None
    """Low-cardinality reason where the state is not EXACT, e.g. "unknown_model"."""
    detail: str | None = None
    """The same for a human, e.g. the template's error."""
    lora: str | None = None
    """Adapter name that roots the block chain; None: the base model."""
    cache_salt: str | None = None
    exact_tokens: Sequence[int] | None = None
    """How many leading tokens of each prompt are exact, where the state is PARTIAL; None: all of them."""
    media: Sequence[Sequence[MediaSpan]] = ()
    """Media of each prompt in the order of their offsets; empty: no prompt has any."""

    @property
    def token_count(self) -> int:
        """Tokens over all prompts; of PARTIAL ones at least."""
        return sum(map(len, self.prompts))

    @property
    def exact_prompts(self) -> Sequence[TokenIds]:
        """The prompts as far as they are exact: all that may be looked for among the blocks of engines."""
        if self.exact_tokens is None:
            return self.prompts
        return [prompt[:count] for prompt, count in zip(self.prompts, self.exact_tokens, strict=True)]


@dataclass(slots=True)
class PluginScores:
    """What one scorer said in one cycle; `scores` is parallel to `Decision.candidates`."""

    name: str
    weight: float
    scores: list[float]


@dataclass(slots=True)
class PrefixMatch:
    """How much of a request's prompts each candidate holds (parallel to the candidates), in tokens and in blocks of the configured unit."""

    block_size: int
    """blockSizeTokens: the unit of `matched_blocks` and `total_blocks`."""
    total_blocks: int
    matched_blocks: list[int]
    total_tokens: int
    matched_tokens: list[int]
    """Hit the engine will report: contiguous confirmed or speculative prefix, at most tokens - 1 rounded down to the engine's block."""
    weighted_blocks: Sequence[float] | None = None
    """Matched blocks, each worth as much as the medium it is in and none cut off; None: all are worth 1."""
    reads_cache: bool = True
    """False: the engine computes the prompt anew whatever it holds, so nothing matches anywhere."""

    @property
    def worth(self) -> Sequence[float]:
        """What to score."""
        return self.matched_blocks if self.weighted_blocks is None else self.weighted_blocks


@dataclass(slots=True)
class ProfileResult:
    """One profile run: who took part, what everybody scored, who was chosen (best first)."""

    name: str
    candidates: Sequence[Endpoint]
    scores: list[PluginScores]
    totals: list[float]
    chosen: list[Endpoint]


@dataclass(slots=True)
class Decision:
    """Everything one scheduling cycle decided, and why."""

    id: DecisionId
    request_id: str
    primary: ProfileResult
    profiles: Mapping[str, ProfileResult]
    request: InferenceRequest | None
    tokens: TokenizedRequest | None
    prefix: Mapping[str, PrefixMatch] = field(default_factory=dict)
    """By producer name; its lists are parallel to `scheduled`."""
    scheduled: Sequence[Endpoint] = ()
    """The candidates the producers saw, before any filter."""
    decided_at: float = 0.0
    """Monotonic seconds."""
    duration_s: float = 0.0
    """Wall time of the synchronous decide step."""

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


class EndCause(Enum):
    """Why a request is over."""

    FINISHED = "finished"
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    AGED_OUT = "aged_out"
    """No sign of the end arrived within the bounded age."""


@dataclass(slots=True)
class Usage:
    """Tokens an engine says it used for one answer; None: it does not say (spec/protocol.md 2.3.11)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(slots=True)
class RequestEnd:
    """The end of an answer, told by Envoy's access log or by the end of the ext_proc stream (spec/protocol.md 10.1)."""

    decision_id: DecisionId
    cause: EndCause
    status: int | None = None
    served: str | None = None
    """"ip:port" of the endpoint that really served."""
    duration_s: float | None = None
    first_upstream_byte_s: float | None = None
    """The first byte of the response headers; not a time to first token (spec/protocol.md 10.1)."""
    attempts: int | None = None
    response_flags: tuple[str, ...] = ()
    bytes_received: int | None = None
    bytes_sent: int | None = None
    origin: str | None = None
    """Names the request as only the data plane can, where `decision_id` is empty because Envoy never took it over."""
    # --- known only where the answer went through ext_proc; seconds since the request was here whole
    streamed: bool | None = None
    """It was asked for or sent as a stream of events."""
    first_chunk_s: float | None = None
    """The first chunk that was not empty: a time to first token, where it is streamed."""
    last_chunk_s: float | None = None
    usage: Usage | None = None


@dataclass(slots=True)
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
    bodies_sent: bool = False
    """This data plane is configured to send the bodies of answers through here: what did not come by was cut off."""


@dataclass(frozen=True, slots=True)
class ParityLoss:
    """What engines do with a model's requests is not what was expected of most of them."""

    model: str
    endpoints: Sequence[EndpointId]
    """Where it was seen."""
    cause: str
    """The likely one, of low cardinality: a label value of epp_parity_lost."""
    seen: str
    """What was seen, for a human: "store other blocks than expected"."""
    detail: str
    """The likely cause, for a human, with the place it is seen at."""
    wrong: int
    of: int
    """`wrong` of the last `of` requests."""
