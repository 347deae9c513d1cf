"""An index fed with events that are written as short as they can be, and asked for what A, B and C would hit."""

from collections.abc import Sequence

from epp.domain import EndpointId, EngineHash, TokenizedRequest, TokenState
from epp.kvcache.events import Batch, BlockRemoved, BlockStored, Event
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import Extras, pack_tokens
from epp.reporter import Reporter

A, B, C = EndpointId("ns/a"), EndpointId("ns/b"), EndpointId("ns/c")
PROMPT = list(range(1, 13))
"""Three blocks of four tokens."""


class Recorder(Reporter):
    """Remembers the problems reported."""

    def __init__(self) -> None:
        self.problems: list[tuple[EndpointId, str]] = []

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        self.problems.append((endpoint, reason))


def stored(
    hashes: Sequence[int],
    tokens: Sequence[int],
    *,
    parent: int | None = None,
    size: int = 4,
    lora: str | None = None,
    medium: str = "gpu",
    extras: list[Extras] | None = None,
    group: int | None = 0,
    kind: str | None = "full_attention",
) -> BlockStored:
    hashes_ = [EngineHash(h) for h in hashes]
    parent_ = None if parent is None else EngineHash(parent)
    return BlockStored(hashes_, parent_, pack_tokens(tokens), size, lora, medium, extras, group, kind)


def removed(*hashes: int, medium: str = "gpu", group: int | None = 0) -> BlockRemoved:
    return BlockRemoved([EngineHash(h) for h in hashes], medium, group)


def feed(index: PrefixIndex, endpoint: EndpointId, *events: Event, rank: int = 0, errors: tuple[str, ...] = ()) -> None:
    index.apply(endpoint, rank, Batch(1.0, rank, list(events), errors))


def request(*prompts: list[int], lora: str | None = None, salt: str | None = None) -> TokenizedRequest:
    return TokenizedRequest(TokenState.EXACT, prompts, lora=lora, cache_salt=salt)


def hit_tokens(index: PrefixIndex, *prompts: list[int], now: float = 0.0, lora: str | None = None) -> list[int]:
    """What A, B and C would hit, each prompt lengthened by a token nobody cached, so that the last-token rule is out of play."""
    return index.match(request(*([*prompt, 0] for prompt in prompts), lora=lora), [A, B, C], now).tokens
