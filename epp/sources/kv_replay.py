"""One answer to one replay request: a DEALER, and the frames it brought that were not looked at yet (spec/kv.md 1.5).

A publisher's ROUTER silently drops what its peer does not take at once, so frames are taken first and decoded later. That
buffer has a limit in bytes: when it is reached the socket is closed and the answer counts as cut off; the sequence then
asks again from where it got to, and so any history passes through a bounded buffer. What libzmq reads ahead of that has a limit
of its own while large messages come.

Called by `kv_stream` on the stream thread only. Each request gets a fresh socket, so that no late reply of an earlier one
is taken for its answer.
"""

from collections import deque
from typing import Final

import zmq

from epp.kvcache.sequence import SEQ_BYTES, parse_seq
from epp.sources.kv_messages import ReadAhead

# With 8 replays at a time, 64 MiB in all; libzmq may hold this many messages more a socket.
BUFFER_BYTES: Final = 8 << 20
HIGH_WATER_MARK: Final = 10_000

_END: Final = b"\xff" * SEQ_BYTES


class ReplaySocket:
    """A request that was sent."""

    def __init__(self, socket: "zmq.Socket[bytes]", url: str, start: int, poller: zmq.Poller) -> None:
        """Raises ZMQError for an address ZMQ cannot read; the socket is closed then."""
        self.socket = socket
        self._poller = poller
        self._frames: deque[list[bytes]] = deque()
        self._bytes = 0
        self._read_ahead = ReadAhead(HIGH_WATER_MARK)
        self.cut_off = False
        """The buffer was full: what came after is not known."""
        try:
            socket.connect(url)
            socket.send_multipart([b"", start.to_bytes(SEQ_BYTES, "big")])
        except zmq.ZMQError:
            socket.close(linger=0)
            raise
        poller.register(socket, zmq.POLLIN)

    @property
    def waits(self) -> bool:
        """There are frames to look at."""
        return bool(self._frames)

    def receive(self) -> bool:
        """Take what has arrived; True: something had."""
        came = False
        try:
            while not self.socket.closed:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                came = True
                self._frames.append(frames)
                size = sum(map(len, frames))
                self._bytes += size
                if self._bytes > BUFFER_BYTES:
                    self.cut_off = True
                    self._close_socket()
                elif self._read_ahead.lowered_by(size):
                    self.socket.rcvhwm = self._read_ahead.mark
        except zmq.Again:
            pass
        return came

    def next(self) -> list[bytes]:
        """The oldest frames not looked at."""
        frames = self._frames.popleft()
        self._bytes -= sum(map(len, frames))
        if not self._frames and not self.socket.closed and self._read_ahead.mark < HIGH_WATER_MARK:
            self._read_ahead = ReadAhead(HIGH_WATER_MARK)
            self.socket.rcvhwm = HIGH_WATER_MARK
        return frames

    def close(self) -> None:
        """Forget everything."""
        self._frames.clear()
        self._close_socket()

    def _close_socket(self) -> None:
        if not self.socket.closed:
            self._poller.unregister(self.socket)
            self.socket.close(linger=0)


def read_reply(frames: list[bytes]) -> tuple[bytes | None, int | None, bytes]:
    """(topic, sequence number, payload) of [b"", topic, seq, payload]; older engines leave out the topic. No number: malformed."""
    if len(frames) not in (3, 4):
        return None, None, b""
    return (frames[1] if len(frames) == 4 else None), parse_seq(frames[-2]), frames[-1]


def is_end(frames: list[bytes]) -> bool:
    """The marker after the last batch."""
    return frames[-2][:SEQ_BYTES] == _END
