"""What each request of a soak does: drawn from a seed, so that the same number does the same in every run. Pure.

A request is whole, refused, or broken off by its client or its model server at a point of its life; bodies are taken from a fixed
set, so that what the picker learns about prompts is bounded and everything else that grows is a leak.
"""

import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from epp.demo import texts

MAX_BODY: Final = 512 << 10
"""What the picker is told to accept."""

MODELS: Final = ("soak-a", "soak-b", "soak-c")


class Kind(Enum):
    """How a request ends if nothing goes wrong."""

    JSON = "whole JSON answer"
    STREAM = "whole streamed answer"
    ERROR = "model server answers 500"
    REFUSED = "model server closes before its answer"
    CUT = "model server dies in its answer"
    NOT_JSON = "body is not JSON: 400"
    TOO_LARGE = "body is too large: 413"
    BEFORE_BODY = "client leaves before its body"
    IN_BODY = "client leaves in its body"
    AFTER_BODY = "client leaves after its body"
    IN_ANSWER = "client leaves in its answer"
    CONNECTION = "client drops a connection of many streams"


LEAVES: Final = frozenset((Kind.BEFORE_BODY, Kind.IN_BODY, Kind.AFTER_BODY, Kind.IN_ANSWER, Kind.CONNECTION))
"""Kinds whose client does not wait for the end; it may come all the same."""

STREAMED: Final = frozenset((Kind.STREAM, Kind.CUT, Kind.IN_ANSWER))
"""Kinds whose answer is a stream of events."""

# In parts per thousand. Fewer than half of the streams of a connection are reset early, or Envoy takes it for an attack.
_SHARES: Final[Mapping[Kind, float]] = {
    Kind.JSON: 350,
    Kind.STREAM: 250,
    Kind.ERROR: 40,
    Kind.REFUSED: 40,
    Kind.CUT: 40,
    Kind.NOT_JSON: 30,
    Kind.TOO_LARGE: 8,
    Kind.BEFORE_BODY: 32,
    Kind.IN_BODY: 60,
    Kind.AFTER_BODY: 80,
    Kind.IN_ANSWER: 69,
    Kind.CONNECTION: 1,
}
_KINDS: Final = tuple(_SHARES)
_CUMULATED: Final = tuple(sum(list(_SHARES.values())[: i + 1]) for i in range(len(_SHARES)))

# Bytes of a body, and how many of a hundred are between the two.
_SIZES: Final = ((200, 5_000, 80), (5_000, 64_000, 17), (64_000, 400_000, 3))
_BODIES: Final = 400

_MAX_EVENTS: Final = 24
_MAX_TEXT: Final = 20_000


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body; its checksum comes back in the answer."""

    data: bytes
    crc: int
    path: str


@dataclass(slots=True)
class Plan:
    """One request. Times are seconds."""

    number: int
    kind: Kind
    http2: bool
    body: Body
    pieces: Sequence[int]
    """Where the body is cut into writes: offsets, the last is its length."""
    leaves_after: int
    """Pieces sent when a client leaves in its body."""
    pause_s: float
    """Between pieces; before the client leaves."""
    reset: bool
    """Who breaks off does it with a reset, not with a close; over HTTP/2 a client always resets its stream."""
    wait_s: float
    """Of the model server, before its answer."""
    events: int
    """Of a streamed answer."""
    pace_s: float
    """Between events."""
    text: int
    """Bytes of text in a JSON answer."""


class Plans:
    """The requests of one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        rng = random.Random(seed)
        prose = _prose(rng, MAX_BODY)
        self._bodies = [_body(rng, prose, size) for size in _sizes(rng)]
        self._not_json = [_with_crc(body.data[:-1] + b"]", body.path) for body in self._bodies[:20]]
        self._too_large = _body(rng, prose, MAX_BODY + 50_000)

    def __call__(self, first: int, count: int) -> Iterator[Plan]:
        """Those numbered from `first` on."""
        return (self._plan(number) for number in range(first, first + count))

    def _plan(self, number: int) -> Plan:
        rng = random.Random(self._seed << 32 | number)
        kind = rng.choices(_KINDS, cum_weights=_CUMULATED)[0]
        if kind is Kind.NOT_JSON:
            body = rng.choice(self._not_json)
        else:
            body = self._too_large if kind is Kind.TOO_LARGE else rng.choice(self._bodies)
        size = len(body.data)
        cuts = rng.choices(range(1, size), k=rng.choice((0, 0, 0, 1, 3)))
        return Plan(
            number,
            kind,
            http2=kind is Kind.CONNECTION or rng.random() < 0.5,
            body=body,
            pieces=[*sorted({*cuts, *([size // 2] if kind is Kind.IN_BODY else [])}), size],
            leaves_after=rng.randint(1, len(cuts) + 1),
            pause_s=rng.choice((0.0, rng.uniform(0, 0.004), rng.uniform(0, 0.03))),
            reset=rng.random() < 0.5,
            wait_s=rng.choice((0.0, rng.uniform(0, 0.02))),
            events=rng.randint(_MAX_EVENTS // 2 if kind is Kind.IN_ANSWER else 1, _MAX_EVENTS),
            pace_s=rng.uniform(0, 0.003),
            text=int(_MAX_TEXT ** rng.random()),
        )


def json_answer(number: int, crc: int, text: int) -> bytes:
    """What a model server says to a body of this checksum."""
    return b'{"id":%d,"crc":%d,"text":"%b"}' % (number, crc, b"x" * text)


def event(number: int, crc: int, index: int) -> bytes:
    """One event of a streamed answer."""
    return b'data: {"id":%d,"crc":%d,"n":%d,"text":"some words of an answer"}\n\n' % (number, crc, index)


def streamed_answer(number: int, crc: int, events: int) -> bytes:
    """All of it."""
    return b"".join(event(number, crc, index) for index in range(events))


def _sizes(rng: random.Random) -> Iterator[int]:
    for low, high, share in _SIZES:
        for _ in range(_BODIES * share // 100):
            yield int(low * (high / low) ** rng.random())


def _body(rng: random.Random, prose: str, size: int) -> Body:
    """A chat or completion request of about that many bytes."""
    start = rng.randrange(len(prose))
    text = (prose[start:] + prose)[:size]
    fields: dict[str, object] = {"model": rng.choice(MODELS), "max_tokens": 16}
    if rng.random() < 0.5:
        fields["prompt"], path = text, "/v1/completions"
    else:
        fields["messages"], path = [{"role": "user", "content": text}], "/v1/chat/completions"
    return _with_crc(json.dumps(fields).encode(), path)


def _with_crc(data: bytes, path: str) -> Body:
    return Body(data, zlib.crc32(data), path)


def _prose(rng: random.Random, size: int) -> str:
    messages: list[str] = []
    while sum(map(len, messages)) < size:
        messages.append(texts.user_message(rng, rng.choice(texts.TRADES), 2_000))
    return " ".join(messages)
