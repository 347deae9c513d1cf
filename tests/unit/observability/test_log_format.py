"""The form of log lines, as the flags ask for it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from epp.observability.log_format import LogSettings, configure_logging


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("epp")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def lines(settings: LogSettings) -> list[str]:
    """What a few typical lines look like, at 2026-11-23 12:00:00.25 UTC."""
    stream = io.StringIO()
    configure_logging(settings, stream)
    for level, text in ((logging.DEBUG, "detail"), (logging.INFO, "news"), (logging.WARNING, "two\nlines"), (logging.ERROR, "bad")):
        record = logging.LogRecord("epp.x", level, "", 0, text, None, None)
        record.created, record.msecs = 1795435200.25, 250.0
        if level == logging.ERROR:
            record.exc_info = (ValueError, ValueError("boom"), None)
        if logging.getLogger("epp.x").isEnabledFor(level):
            logging.getLogger("epp.x").handle(record)
    return stream.getvalue().splitlines()


def test_console() -> None:
    """One line each, whatever a client sent; a stack trace after an error."""
    assert lines(LogSettings()) == [
        "2026-11-23T12:00:00.250Z INFO epp.x: news",
        r"2026-11-23T12:00:00.250Z WARNING epp.x: two\nlines",
        "2026-11-23T12:00:00.250Z ERROR epp.x: bad",
        "ValueError: boom",
    ]


def test_json() -> None:
    """One object a line, with the keys of controller-runtime's zap."""
    last = json.loads(lines(LogSettings(encoder="json"))[-1])
    assert last == {"level": "error", "ts": "2026-11-23T12:00:00.250Z", "logger": "epp.x", "msg": "bad", "stacktrace": "ValueError: boom"}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("epoch", "1795435200.25"),
        ("millis", "1795435200250.0"),
        ("nano", "1795435200250000000"),
        ("iso8601", "2026-11-23T12:00:00.250Z"),
        ("rfc3339", "2026-11-23T12:00:00Z"),
        ("rfc3339nano", "2026-11-23T12:00:00.250000000Z"),
    ],
)
def test_time_encodings(encoding: str, text: str) -> None:
    """Each of zap's ways to say the time."""
    assert lines(LogSettings(time_encoding=encoding))[0] == f"{text} INFO epp.x: news"


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (LogSettings(verbosity=1), 2),
        (LogSettings(verbosity=3), 3),
        (LogSettings(verbosity=4), 4),
        (LogSettings(verbosity=4, level="error"), 1),
        (LogSettings(verbosity=1, level="debug"), 4),
        (LogSettings(level="1"), 2),
        (LogSettings(level="panic"), 0),
    ],
)
def test_levels(settings: LogSettings, count: int) -> None:
    """-v, and --zap-log-level above it."""
    assert sum("epp.x" in line for line in lines(settings)) == count


def test_stack_traces_can_be_left_out() -> None:
    """--zap-stacktrace-level=panic: errors come without one."""
    assert "ValueError: boom" not in lines(LogSettings(stacktrace_level="panic"))
