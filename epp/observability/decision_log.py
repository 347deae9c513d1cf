"""The decision log: one JSON line a decision, one an end, in a file; read by the demo and by people who ask "why there?".

A decision:
    {"event":"decision", "time":1769860800.123,      Unix seconds
     "id":"...", "request_id":"...",                 ours (joins with "end"); x-request-id
     "model":"m", "api":"chat", "priority":null,     null for a request without a body; the priority too where it names none
     "endpoint":"default/a", "destination":"10.0.0.1:8000",   the id of the first choice; the header's value, all choices
     "profile":"default", "weights":{"prefix-cache-scorer":2.0, ...},
     "candidates":[                                  all the pool offered, in its order
        {"endpoint":"default/a", "total":3.5,        weighted sum; null: removed by a filter, or nobody scored
         "scores":{"prefix-cache-scorer":1.0, ...},  raw, by plugin
         "matches":{"precise-prefix-cache-producer":{"tokens":96, "blocks":6}}}, ...],
     "prefix":{"precise-prefix-cache-producer":{"block_size":16, "total_blocks":7, "total_tokens":118,
        "reads_cache":true}},                        false: it asks for logprobs of its prompt, which engines then compute anew; nothing matches
     "tokens":{"state":"exact", "reason":null, "count":118},   null for a request without a body
     "duration_s":0.00012}
An end:
    {"event":"end", "time":..., "id":"...", "cause":"finished", "status":200, "served":"10.0.0.1:8000", "duration_s":1.2,
     "first_upstream_byte_s":0.02, "attempts":1, "response_flags":[], "bytes_received":512, "bytes_sent":2048,
     "first_chunk_s":0.21, "last_chunk_s":1.19,      null where answers do not go through ext_proc; so is the next
     "usage":{"prompt_tokens":118, "completion_tokens":40, "total_tokens":158, "cached_tokens":96}}
What a client chose (model, request_id) is cut after MAX_QUOTED characters. Fields may be added. Scores, weights and candidates are those of the primary profile.

`DecisionLog` is a reporter and owns its file. Lines are gathered and written when there are 64 KiB, a quarter of a second
after the first while `run` runs, and on `close`. A disk that is full ends the log with one error line, not the picker.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from epp.domain import Decision, RequestEnd
from epp.errors import ConfigError
from epp.reporter import Reporter

logger = logging.getLogger(__name__)

# Longer than any model's name or request id; without a limit a client could fill the disk with one header.
MAX_QUOTED = 256

FLUSH_BYTES = 64 << 10
FLUSH_INTERVAL_S = 0.25


class DecisionLog(Reporter):
    """Appends decisions and ends to one file."""

    def __init__(self, path: Path, *, wall_clock: Callable[[], float]) -> None:
        """`wall_clock` gives Unix seconds. Raises ConfigError where the file cannot be written."""
        self._path = path
        self._wall_clock = wall_clock
        self._encoder = msgspec.json.Encoder()
        self._lines = bytearray()
        self._closed = False
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"--decision-log: {path}: {(error.strerror or str(error)).lower()}; give a file that can be written"
            ) from None

    async def run(self) -> None:
        """Write what has gathered, four times a second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            self.flush()

    def decided(self, decision: Decision) -> None:
        self._write({"event": "decision", "time": self._wall_clock(), **_decision_record(decision)})

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        self._write(
            {
                "event": "end",
                "time": self._wall_clock(),
                "id": decision.id,
                "cause": end.cause.value,
                "status": end.status,
                "served": end.served,
                "duration_s": end.duration_s,
                "first_upstream_byte_s": end.first_upstream_byte_s,
                "attempts": end.attempts,
                "response_flags": end.response_flags,
                "bytes_received": end.bytes_received,
                "bytes_sent": end.bytes_sent,
                "first_chunk_s": end.first_chunk_s,
                "last_chunk_s": end.last_chunk_s,
                "usage": end.usage,
            }
        )

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._lines or self._closed:
            return
        try:
            while self._lines:
                del self._lines[: self._file.write(self._lines)]
        except OSError as error:
            logger.error("%s: %s; the decision log ends here", self._path, error.strerror)  # noqa: TRY400  # a sentence, no trace
            self._closed = True
            self._file.close()
        self._lines.clear()

    def close(self) -> None:
        """Write what has gathered and close the file; later decisions are not logged."""
        self.flush()
        self._closed = True
        self._file.close()

    def _write(self, record: dict[str, object]) -> None:
        if self._closed:
            return
        self._lines += self._encoder.encode(record)
        self._lines += b"\n"
        if len(self._lines) >= FLUSH_BYTES:
            self.flush()


def _decision_record(decision: Decision) -> dict[str, object]:
    request, tokens, primary = decision.request, decision.tokens, decision.primary
    return {
        "id": decision.id,
        "request_id": decision.request_id[:MAX_QUOTED],
        "model": request.model[:MAX_QUOTED] if request is not None else None,
        "api": request.api.value if request is not None else None,
        "priority": request.priority if request is not None else None,
        "endpoint": decision.endpoint.id,
        "destination": decision.destination,
        "profile": primary.name,
        "weights": {scores.name: scores.weight for scores in primary.scores},
        "candidates": _candidate_records(decision),
        "prefix": {
            producer: {
                "block_size": match.block_size,
                "total_blocks": match.total_blocks,
                "total_tokens": match.total_tokens,
                "reads_cache": match.reads_cache,
            }
            for producer, match in decision.prefix.items()
        },
        "tokens": None if tokens is None else {"state": tokens.state.value, "reason": tokens.reason, "count": tokens.token_count},
        "duration_s": decision.duration_s,
    }


def _candidate_records(decision: Decision) -> list[dict[str, object]]:
    """One record an endpoint the producers saw; `scores` and `totals` are parallel to the smaller list a filter left."""
    primary = decision.primary
    scored = {endpoint.id: i for i, endpoint in enumerate(primary.candidates)}
    records: list[dict[str, object]] = []
    for position, endpoint in enumerate(decision.scheduled):
        i = scored.get(endpoint.id)
        records.append(
            {
                "endpoint": endpoint.id,
                "total": primary.totals[i] if i is not None and i < len(primary.totals) else None,
                "scores": {} if i is None else {scores.name: scores.scores[i] for scores in primary.scores},
                "matches": {
                    producer: {"tokens": match.matched_tokens[position], "blocks": match.matched_blocks[position]}
                    for producer, match in decision.prefix.items()
                },
            }
        )
    return records
