"""Shows that something happens: one line that changes in place on a terminal, a line now and then elsewhere.

Called by `session` on the event loop; writes at most ten times a second to a terminal, every five seconds to a file or pipe.
"""

import shutil
import sys
import time
from typing import TextIO

TERMINAL_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 5.0


class Progress:
    """The line of what is going on now."""

    def __init__(self, output: TextIO | None = None) -> None:
        """`output` is standard error where none is given: standard output is for the result."""
        self._output = output or sys.stderr
        self._in_place = self._output.isatty()
        self._next = 0.0
        self._open = False

    def step(self, text: str) -> None:
        """A new stage: always shown."""
        self._write(text)
        self._next = time.monotonic() + (TERMINAL_INTERVAL_S if self._in_place else PLAIN_INTERVAL_S)

    def update(self, text: str) -> None:
        """The same stage went on: shown when the last text is old enough."""
        if time.monotonic() >= self._next:
            self.step(text)

    def done(self, text: str) -> None:
        """The stage is over: the line stays."""
        self._write(text)
        if self._in_place:
            self._output.write("\n")
            self._output.flush()
        self._open = False

    def clear(self) -> None:
        """Take an unfinished line away before something else is printed."""
        if self._in_place and self._open:
            self._output.write("\r\x1b[K")
            self._output.flush()
        self._open = False

    def _write(self, text: str) -> None:
        if self._in_place:
            width = shutil.get_terminal_size().columns
            self._output.write("\r\x1b[K" + text[: width - 1])
        else:
            self._output.write(text + "\n")
        self._output.flush()
        self._open = True


def bar(share: float, width: int) -> str:
    """A bar of eighths of a character: "█████▍    "."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    text = "█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return text.ljust(width)
