"""What is known: endpoints and what they last said, the tokens of prompts and who holds them, and the names of things.

Interpreted in every build: plugins read it once an endpoint, which CPython does faster than through compiled classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NewType

from epp.domain.kinds import TokenState

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
class Usage:
    """Tokens an engine says it used for one answer; None: it does not say (spec/protocol.md 2.3.11)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None


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
