"""What a peer may ask of a transport, in numbers; each with its reason. Pure; built once by the composition root or a test.

A peer is a data plane or a prober: trusted to be Envoy, not trusted to be healthy. Message sizes are the user's to choose
(--grpc-max-recv-msg-size) and not here. grpc.aio takes over what it has an option for: keepalive and headers.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds, per connection unless it says otherwise."""

    max_streams: int = 10_000
    """Open at a time. A stream of a FULL_DUPLEX gateway lasts as long as its answer; beyond this Envoy opens another connection."""
    header_list: int = 256 << 10
    """Of one call's own headers. The request's headers travel in messages; a call has a dozen small ones."""
    stream_window: int = 256 << 10
    """Sent by the peer and not yet taken by the handler, a stream: four of Envoy's largest body messages."""
    connection_window: int = 16 << 20
    """The same over all streams."""
    partial_messages: int = 64 << 20
    """Of messages whose end has not arrived, over all streams: the window does not bound these, or a long message could not end."""
    send_queue: int = 256 << 10
    """Written and not yet taken by the peer, a stream; beyond it the writer waits. One message more may be queued."""
    connection_send_queue: int = 16 << 20
    """The same over all streams; beyond it every writer waits until its own bytes have left."""
    silent_streams: int = 10_000
    """Streams that end without having brought a message may come in a burst this large ..."""
    silent_streams_per_s: float = 1_000.0
    """... and for long at this rate. Envoy sends the first message together with the stream's headers, so that even its
    cancellations, thousands a second, hardly ever count. Who exceeds it gets GOAWAY ENHANCE_YOUR_CALM: new streams of the
    connection are ignored, open ones go on to their end."""
    keepalive_interval_s: float = 30.0
    """A peer that is silent for so long is asked for a sign of life ..."""
    keepalive_timeout_s: float = 10.0
    """... and given up after so long without one."""
    handshake_s: float = 5.0
    """Where TLS is spoken: a connection without a handshake by then is told of in the log."""


class Allowance:
    """So many at once, so many a second for long (a token bucket). Pure: it is told the time."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """One more, at this time in seconds; False: that is too many."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        self._left -= 1
        return self._left >= 0

    def refill(self) -> None:
        """Begin anew."""
        self._left = float(self._burst)
