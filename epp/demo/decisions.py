"""Reads the decision log of one run (format: epp/observability/decision_log.py) into `records.Choice`. Pure but for the file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from epp.demo.records import Candidate, Choice


class _Match(msgspec.Struct):
    tokens: int
    blocks: int


class _Candidate(msgspec.Struct):
    endpoint: str
    total: float | None
    scores: Mapping[str, float]
    matches: Mapping[str, _Match]


class _Prefix(msgspec.Struct):
    total_blocks: int


class _Line(msgspec.Struct):
    event: str
    time: float
    request_id: str = ""
    endpoint: str = ""
    weights: Mapping[str, float] = {}
    candidates: Sequence[_Candidate] = ()
    prefix: Mapping[str, _Prefix] = {}
    duration_s: float | None = None


def read(path: Path) -> dict[str, Choice]:
    """The decisions by request id."""
    decoder = msgspec.json.Decoder(_Line)
    lines = (decoder.decode(line) for line in path.read_bytes().splitlines())
    return {line.request_id: _choice(line) for line in lines if line.event == "decision"}


def _choice(line: _Line) -> Choice:
    return Choice(
        request_id=line.request_id,
        decided=line.time,
        pod=_pod(line.endpoint),
        weights=line.weights,
        candidates=tuple(map(_candidate, line.candidates)),
        total_blocks=max((prefix.total_blocks for prefix in line.prefix.values()), default=0),
        duration_s=line.duration_s or 0.0,
    )


def _candidate(candidate: _Candidate) -> Candidate:
    best = max(candidate.matches.values(), key=lambda match: match.tokens, default=_Match(0, 0))
    return Candidate(_pod(candidate.endpoint), candidate.total, candidate.scores, best.tokens, best.blocks)


def _pod(endpoint: str) -> str:
    """ "namespace/name" without the namespace: a demo has one."""
    return endpoint.rpartition("/")[2]
