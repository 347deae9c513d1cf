"""The lines of the decision log."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from epp.domain import Decision, EndCause, RequestEnd, Usage
from epp.errors import ConfigError
from epp.observability.decision_log import MAX_QUOTED, DecisionLog

Decide = Callable[..., Decision]


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_decision_and_its_end(tmp_path: Path, decide: Decide) -> None:
    """Who could have been chosen, what each scorer said, what was chosen; then how it ended."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, wall_clock=lambda: 1769860800.5)
    decision = decide()
    log.decided(decision)
    log.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, status=200, served="10.0.0.1:8000", duration_s=1.5, attempts=1))
    log.close()
    assert records(path) == [
        {
            "event": "decision",
            "time": 1769860800.5,
            "id": "d1",
            "request_id": "r1",
            "model": "tiny",
            "api": "chat",
            "priority": None,
            "endpoint": "team/a",
            "destination": "10.0.0.1:8000",
            "profile": "default",
            "weights": {"prefix": 2.0, "queue": 1.0},
            "candidates": [
                {"endpoint": "team/b", "total": None, "scores": {}, "matches": {"precise": {"tokens": 48, "blocks": 3}}},
                {
                    "endpoint": "team/a",
                    "total": 2.5,
                    "scores": {"prefix": 0.75, "queue": 1.0},
                    "matches": {"precise": {"tokens": 0, "blocks": 0}},
                },
            ],
            "prefix": {"precise": {"block_size": 16, "total_blocks": 4, "total_tokens": 70, "reads_cache": True}},
            "tokens": {"state": "exact", "reason": None, "count": 70},
            "duration_s": 0.0003,
        },
        {
            "event": "end",
            "time": 1769860800.5,
            "id": "d1",
            "cause": "finished",
            "status": 200,
            "served": "10.0.0.1:8000",
            "duration_s": 1.5,
            "first_upstream_byte_s": None,
            "attempts": 1,
            "response_flags": [],
            "bytes_received": None,
            "bytes_sent": None,
            "first_chunk_s": None,
            "last_chunk_s": None,
            "usage": None,
        },
    ]


def test_usage_is_told_where_the_answer_came_by(tmp_path: Path, decide: Decide) -> None:
    """With the names engines give it."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, wall_clock=lambda: 0.0)
    decision = decide()
    log.ended(decision, RequestEnd(decision.id, EndCause.FINISHED, first_chunk_s=0.5, last_chunk_s=2.0, usage=Usage(7, 2, 9)))
    log.close()
    (record,) = records(path)
    assert (record["first_chunk_s"], record["last_chunk_s"]) == (0.5, 2.0)
    assert record["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cached_tokens": None}


def test_what_a_client_made_up_is_cut(tmp_path: Path, decide: Decide) -> None:
    """A model name or request id of any length does not fill the disk."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, wall_clock=lambda: 0.0)
    decision = decide("m" * 100_000)
    decision.request_id = "r" * 60_000
    log.decided(decision)
    log.close()
    (record,) = records(path)
    assert (record["model"], record["request_id"]) == ("m" * MAX_QUOTED, "r" * MAX_QUOTED)


def test_a_request_without_a_body(tmp_path: Path, decide: Decide) -> None:
    """Nobody scored, and there are no tokens."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, wall_clock=lambda: 0.0)
    log.decided(decide(body=False))
    log.close()
    (record,) = records(path)
    assert (record["model"], record["api"], record["tokens"]) == (None, None, None)
    assert record["candidates"] == [{"endpoint": e, "total": None, "scores": {}, "matches": {}} for e in ("team/a", "team/b")]


def test_lines_are_written_together_and_none_is_lost(tmp_path: Path, decide: Decide) -> None:
    """A decision costs no write of its own; a later run adds to the file; what comes after the close is not logged."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, wall_clock=lambda: 0.0)
    log.decided(decide(number=0))
    assert path.read_bytes() == b""
    for number in range(1, 200):
        log.decided(decide(number=number))
    assert 0 < len(path.read_bytes().splitlines()) < 200
    log.close()
    log.decided(decide(number=999))
    log.close()
    again = DecisionLog(path, wall_clock=lambda: 0.0)
    again.decided(decide(number=200))
    again.flush()
    assert [record["id"] for record in records(path)] == [f"d{number}" for number in range(201)]
    again.close()


def test_a_full_disk_ends_the_log_and_nothing_else(decide: Decide, caplog: pytest.LogCaptureFixture) -> None:
    """One sentence, and the picker goes on."""
    caplog.set_level(logging.INFO)
    log = DecisionLog(Path("/dev/full"), wall_clock=lambda: 0.0)
    log.decided(decide())
    log.flush()
    log.decided(decide())
    log.close()
    assert [record.getMessage() for record in caplog.records] == ["/dev/full: No space left on device; the decision log ends here"]


def test_a_file_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    """Flag, file and remedy."""
    with pytest.raises(ConfigError, match=r"--decision-log: .*/missing/x: no such file or directory; give a file that can be written"):
        DecisionLog(tmp_path / "missing" / "x", wall_clock=lambda: 0.0)
