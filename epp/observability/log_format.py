"""The form of log lines and how many there are: -v and the zap flags of controller-runtime (spec/protocol.md 5.2).

`configure_logging` is called once, by the composition root.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TextIO

_ROOT: Final = "epp"


def _iso(record: logging.LogRecord, zone: str) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}{zone}"


def _nanoseconds(record: logging.LogRecord) -> str:
    # Enough digits for any clock; the record's own is a float of microseconds.
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.created % 1 * 1e6):06d}000Z"


_TIMES: Final[Mapping[str, Callable[[logging.LogRecord], str | float | int]]] = MappingProxyType(
    {
        "": lambda record: _iso(record, "Z"),
        "rfc3339": lambda record: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
        "rfc3339nano": _nanoseconds,
        "iso8601": lambda record: _iso(record, "Z"),
        "epoch": lambda record: round(record.created, 6),
        "millis": lambda record: round(record.created * 1e3, 3),
        "nano": lambda record: round(record.created * 1e6) * 1000,
    }
)
_LEVELS: Final = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR, "panic": logging.CRITICAL}
)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The flags; an empty text is the default."""

    verbosity: int = 2
    """-v: 0 and 1 warnings, 2 and 3 what happens, 4 and more every decision."""
    level: str = ""
    """--zap-log-level: a word, or a number that is a verbosity; stands above `verbosity`."""
    encoder: str = ""
    """--zap-encoder: "console" or "json"."""
    time_encoding: str = ""
    stacktrace_level: str = ""
    """--zap-stacktrace-level: least level whose lines show stack traces."""


class _Formatter(logging.Formatter):
    """What the forms have in common."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self._time = _TIMES[settings.time_encoding]
        self._traces_from = _level(settings.stacktrace_level) if settings.stacktrace_level else logging.ERROR

    def trace(self, record: logging.LogRecord) -> str:
        """The stack trace of a line that has one and may show it."""
        return self.formatException(record.exc_info) if record.exc_info and record.levelno >= self._traces_from else ""


class ConsoleFormatter(_Formatter):
    """`2026-01-31T12:00:00.123Z WARNING epp: text`; UTC. What a client sent cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        trace = self.trace(record)
        return f"{self._time(record)} {record.levelname} {record.name}: {text}" + (f"\n{trace}" if trace else "")


class JsonFormatter(_Formatter):
    """One object a line, with controller-runtime's keys: level, ts, logger, msg, stacktrace."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"level": record.levelname.lower(), "ts": self._time(record), "logger": record.name, "msg": record.getMessage()}
        if trace := self.trace(record):
            fields["stacktrace"] = trace
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Log to `stream`, stderr by default. Replaces earlier handlers."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(settings) if settings.encoder == "json" else ConsoleFormatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = _level(settings.level) if settings.level else _of_verbosity(settings.verbosity)
    root.setLevel(max(level, logging.WARNING))  # libraries may warn, their chatter is theirs
    logging.getLogger(_ROOT).setLevel(level)


def _level(text: str) -> int:
    return _of_verbosity(int(text)) if text.isdigit() else _LEVELS[text]


def _of_verbosity(verbosity: int) -> int:
    return logging.WARNING if verbosity < 2 else logging.INFO if verbosity < 4 else logging.DEBUG
