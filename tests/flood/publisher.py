"""The publisher that floods: a process of its own, told over standard input what to send; `run` starts it.

It prints its ports, then for each line `SECONDS PER_SECOND KIND` (PER_SECOND 0: as fast as loopback takes it; KIND *: all of them in
turns; small: those of few bytes) what it did, as one line of JSON. With * whoever asks for a replay gets garbage without an end,
otherwise an empty one.
"""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

import zmq

from tests.flood.garbage import kinds

ALL: Final = "*"
SMALL: Final = "small"
SMALL_BYTES: Final = 6_000
BURST: Final = 50
REPLIES: Final = 2_000
END_OF_REPLAY: Final = b"\xff" * 8


@dataclass(slots=True)
class Sent:
    """What one flood came to."""

    messages: int = 0
    bytes: int = 0
    heard_s: float = 0.0
    """Seconds in which anybody listened."""
    replays: int = 0
    """Asked for and answered."""


class Flooder:
    """PUB and ROUTER of one endpoint."""

    def __init__(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub, self._router = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        self._pub.set(zmq.XPUB_NODROP, 1)  # full queues are felt, so that what is counted was taken
        self._pub.sndhwm = 200
        self._pub.sndtimeo = 20
        self.ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (self._pub, self._router)]
        self._listeners = 0
        self._numbers = itertools.count()
        self._kinds = kinds()

    def flood(self, seconds: float, per_second: float, kind: str) -> Sent:
        """Send for so long."""
        sent, began = Sent(), time.monotonic()
        messages = self._messages(kind)
        now = began
        while now < began + seconds:
            self._attend(sent, hostile=kind == ALL)
            if self._listeners:
                self._burst(messages, sent)
                sent.heard_s += time.monotonic() - now
                if per_second and (ahead := sent.messages / per_second - sent.heard_s) > 0:
                    time.sleep(ahead)
                    sent.heard_s += ahead
            else:
                self._pub.poll(20)
            now = time.monotonic()
        return sent

    def _messages(self, kind: str) -> Iterator[list[bytes] | bytes]:
        """For ever; of all kinds a few at a time."""
        chosen = [itertools.cycle(messages) for name, messages in self._kinds.items() if kind in (ALL, name)]
        if kind == SMALL:
            chosen = [itertools.cycle(small) for messages in self._kinds.values() if (small := list(filter(_is_small, messages)))]
        while True:
            for messages in chosen:
                yield from itertools.islice(messages, 10)

    def _burst(self, messages: Iterator[list[bytes] | bytes], sent: Sent) -> None:
        with contextlib.suppress(zmq.Again):
            for message in itertools.islice(messages, BURST):
                frames = message if isinstance(message, list) else [b"kv@1@m", next(self._numbers).to_bytes(8, "big"), message]
                self._pub.send_multipart(frames)
                sent.messages += 1
                sent.bytes += sum(map(len, frames))

    def _attend(self, sent: Sent, *, hostile: bool) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                self._listeners += 1 if self._pub.recv(zmq.NOBLOCK)[:1] == b"\x01" else -1
        with contextlib.suppress(zmq.Again):
            while True:
                identity = self._router.recv_multipart(zmq.NOBLOCK)[0]
                sent.replays += 1
                if not hostile:
                    self._router.send_multipart([identity, b"", b"", END_OF_REPLAY, b""], zmq.NOBLOCK)
                    continue
                for message in itertools.islice(self._messages(ALL), REPLIES):
                    frames = message if isinstance(message, list) else [b"", b"", next(self._numbers).to_bytes(8, "big"), message]
                    self._router.send_multipart([identity, *frames], zmq.NOBLOCK)


def _is_small(message: list[bytes] | bytes) -> bool:
    return (len(message) if isinstance(message, bytes) else sum(map(len, message))) <= SMALL_BYTES


def main() -> None:
    """Serve standard input to its end."""
    flooder = Flooder()
    _say(flooder.ports)
    for line in sys.stdin:
        seconds, per_second, kind = line.rstrip("\n").split(" ", 2)
        _say(asdict(flooder.flood(float(seconds), float(per_second), kind)))


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
