"""One answer to one replay request: a DEALER, and the frames it brought that were not looked at yet (spec/kv.md 1.5).

A publisher's ROUTER silently drops what its peer does not take at once, so frames are taken first, and decoded when the socket is
closed: libzmq would read ahead meanwhile. That buffer has a limit in bytes: when it is reached the answer counts as cut off; the
sequence then asks again from where it got to, and so any history passes through a bounded buffer.

Called by `kv_stream` on the stream thread only. Each request gets a fresh socket, so that no late reply of an earlier one
is taken for its answer.
"""

from collections import deque
from typing import Final

import zmq

from epp.kvcache.sequence import SEQ_BYTES, parse_seq

# With 8 replays at a time, 64 MiB in all; libzmq may hold this many messages more a socket while they arrive.
BUFFER_BYTES: Final = 8 << 20
HIGH_WATER_MARK: Final = 10_000

_END: Final = b"\xff" * SEQ_BYTES
_REPLY_FRAMES: Final = (3, 4)


class ReplaySocket:
    """A request that was sent."""

    def __init__(self, socket: "zmq.Socket[bytes]", url: str, start: int, poller: zmq.Poller) -> None:
        """Raises ZMQError for an address ZMQ cannot read; the socket is closed then."""
        self.socket = socket
        self._poller = poller
        self._frames: deque[list[bytes]] = deque()
        self._bytes = 0
        self.cut_off = False
        """The buffer was full, or the answer had no end: what comes after is not known."""
        try:
            socket.connect(url)
            socket.send_multipart([b"", start.to_bytes(SEQ_BYTES, "big")])
        except zmq.ZMQError:
            socket.close(linger=0)
            raise
        poller.register(socket, zmq.POLLIN)

    @property
    def is_over(self) -> bool:
        """Nothing more will come."""
        return self.socket.closed

    @property
    def waits(self) -> bool:
        """All there is has come, and there are frames to look at."""
        return self.is_over and bool(self._frames)

    def receive(self) -> bool:
        """Take what has arrived; True: something had."""
        came = False
        try:
            while not self.socket.closed:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                came = True
                self._frames.append(frames)
                self._bytes += sum(map(len, frames))
                if is_end(frames):
                    self._close_socket()
                elif self._bytes > BUFFER_BYTES:
                    self.stop()
        except zmq.Again:  # all is read
            pass
        return came

    def stop(self) -> bool:
        """Wait for no more; True: there are frames to look at."""
        self.cut_off = self.cut_off or not self.is_over
        self._close_socket()
        return self.waits

    def next(self) -> list[bytes]:
        """The oldest frames not looked at."""
        return self._frames.popleft()

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
    if len(frames) not in _REPLY_FRAMES:
        return None, None, b""
    return (frames[1] if len(frames) == 4 else None), parse_seq(frames[-2]), frames[-1]


def is_end(frames: list[bytes]) -> bool:
    """The marker after the last batch."""
    return len(frames) in _REPLY_FRAMES and frames[-2][:SEQ_BYTES] == _END
