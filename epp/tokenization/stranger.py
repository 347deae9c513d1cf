"""Child process: `python -m epp.tokenization.stranger` renders the templates that requests bring along (strangers.py asks it).

A template is a program. The sandbox and the steps keep it from attributes and from running for ever, but a filter that pads a text or
a loop that doubles one takes all memory there is: so here there is little, and what needs more ends with an error, or with this process.
Reads pickled `Ask`s from stdin, which the serving process writes, and writes `Answer`s to stdout, each after its length.
"""

import pickle
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from epp.tokenization.absent import NoTokensError
from epp.tokenization.template import compiled

MEMORY: Final = 256 << 20
"""What a rendering may take, in bytes, beyond what this process has when it begins."""

LARGEST: Final = 16 << 20
"""Bytes of the longest answer."""

LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Ask:
    """A template, to be looked at or to be rendered."""

    source: str
    arguments: dict[str, Any] | None = None
    """Those of ChatTemplate.render; None: it is looked at."""


@dataclass(slots=True)
class Answer:
    """What became of it."""

    error: str | None = None
    """Why there is no text."""
    text: str = ""
    variables: list[str] = field(default_factory=list)
    content_format: str = "string"
    knows_developer: bool = False
    last: bool = False
    """The process ends with it."""


def answer(ask: Ask) -> Answer:
    """Raises MemoryError where there is too little; what is left of this process then is not to be relied on."""
    try:
        template = compiled(ask.source)
        if ask.arguments is not None:
            return Answer(text=template.render(**ask.arguments))
        return Answer(
            variables=sorted(template.variables), content_format=template.content_format, knows_developer=template.knows_developer
        )
    except NoTokensError as error:
        if isinstance(error.__context__, MemoryError):
            raise error.__context__ from None
        return Answer(error=error.detail)


def main(asks: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more asks."""
    _limit_memory()
    while size := asks.read(LENGTH_BYTES):
        try:
            # Written by the serving process, and read before any template runs.
            given = answer(pickle.loads(asks.read(int.from_bytes(size, "big"))))  # noqa: S301
            encoded = msgspec.msgpack.encode(given)
        except MemoryError:
            _write(answers, msgspec.msgpack.encode(Answer(error="the template takes too much memory", last=True)))
            return
        except (ValueError, RecursionError) as error:  # half a surrogate pair in the text; arguments nested too deep
            encoded = msgspec.msgpack.encode(Answer(error=ascii(str(error))))
        if len(encoded) > LARGEST:
            encoded = msgspec.msgpack.encode(Answer(error="the template makes too long a text"))
        _write(answers, encoded)


def _write(answers: BinaryIO, encoded: bytes) -> None:
    answers.write(len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded)
    answers.flush()


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    begins_with = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (begins_with + MEMORY, begins_with + MEMORY))


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
