"""Templates that requests bring along (trustRequestChatTemplate), rendered in a process of their own with little memory (stranger.py).

The process is started with the first of them, answers one after the other, and is replaced when it ended or took too long.
Called in the threads of the tokenizer, never on the event loop: every call waits for the process.
"""

import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import IO, Final, Unpack

import msgspec

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.content_format import ContentFormat
from epp.tokenization.stranger import LARGEST, LENGTH_BYTES, Answer, Ask
from epp.tokenization.template import Message, Rendering

TIMEOUT_S: Final = 10.0
"""For one answer, the start of the process included; the steps of a template take two or three seconds."""

# Of the environment the process needs only what Python and the local time need.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")
# What is remembered of templates, each no longer than this; known ones have a hundredth of it.
_REMEMBERED: Final = 32
LONGEST_SOURCE: Final = 256 << 10
_READ: Final = 1 << 16

_decode = msgspec.msgpack.Decoder(Answer).decode


class Strangers:
    """The process, and what it said about templates. Thread-safe."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.template = lru_cache(maxsize=_REMEMBERED)(self._look)
        """The template of a text. Raises NoTokensError for one that does not compile."""

    def close(self) -> None:
        """End the process, and with it what a thread may be waiting for."""
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _look(self, source: str) -> "StrangersTemplate":
        if len(source) > LONGEST_SOURCE:
            raise NoTokensError(Reason.UNSUPPORTED, f"the request's template has more than {LONGEST_SOURCE} characters")
        return StrangersTemplate(source, self.ask(Ask(source)), self.ask)

    def ask(self, ask: Ask) -> Answer:
        """Raises NoTokensError where the template, or the process, has something to complain about."""
        try:
            message = pickle.dumps(ask)
        except RecursionError:
            raise NoTokensError(Reason.UNSUPPORTED, "the arguments of the template are nested too deep") from None
        with self._lock:
            try:
                answer = self._answer(message)
                if answer.last:
                    self._end()
            except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as error:
                self._end()
                why = "took too long" if isinstance(error, TimeoutError) else "ended"
                raise NoTokensError(Reason.TEMPLATE_ERROR, f"the process that renders the request's template {why}") from None
        if answer.error is not None:
            raise NoTokensError(Reason.TEMPLATE_ERROR, answer.error)
        return answer

    def _answer(self, message: bytes) -> Answer:
        deadline = time.monotonic() + self._timeout_s
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _started()
        asks, answers = self._process.stdin, self._process.stdout
        assert asks is not None
        assert answers is not None
        asks.write(len(message).to_bytes(LENGTH_BYTES, "big") + message)
        asks.flush()
        size = int.from_bytes(_read(answers, LENGTH_BYTES, deadline), "big")
        if size > LARGEST:
            raise EOFError
        return _decode(_read(answers, size, deadline))

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class StrangersTemplate:
    """As ChatTemplate, somewhere else."""

    def __init__(self, source: str, seen: Answer, ask: Callable[[Ask], Answer]) -> None:
        self.source = source
        self.variables = frozenset(seen.variables)
        self.content_format: ContentFormat = "openai" if seen.content_format == "openai" else "string"
        self.knows_developer = seen.knows_developer
        self._ask = ask

    def render(self, messages: Sequence[Message], **how: Unpack[Rendering]) -> str:
        """The prompt text. Raises NoTokensError."""
        return self._ask(Ask(self.source, {"messages": messages, **how})).text


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        (sys.executable, "-P", "-m", "epp.tokenization.stranger"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )


def _read(answers: IO[bytes], size: int, deadline: float) -> bytes:
    """So many bytes. Raises TimeoutError, EOFError."""
    got, poll = bytearray(), select.poll()
    poll.register(answers, select.POLLIN)
    while len(got) < size:
        if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise TimeoutError
        chunk = os.read(answers.fileno(), min(size - len(got), _READ))
        if not chunk:
            raise EOFError
        got += chunk
    return bytes(got)
