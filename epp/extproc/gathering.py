"""Request bodies that come in more than one message: kept until they are whole, each and all together within a bound.

Pure. One BodyRoom for all exchanges of a process; a Gathering belongs to one exchange, which drops it once.
"""

from io import BytesIO
from typing import Final

from epp.errors import PayloadTooLargeError, RequestError, ResourceExhaustedError

# All bodies that are still coming, together: slow clients with long prompts must not take the picker down with them.
ALL_BODIES_BYTES: Final = 1 << 30
# One below that is never refused for what others take: clients that stop half way could shut out everybody.
SMALL_BYTES: Final = 64 << 10


class BodyRoom:
    """What the bodies that are gathered now take, in bytes."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0


class Gathering:
    """One body, as far as it has come."""

    __slots__ = ("_first", "_max_bytes", "_rest", "_room", "_size")

    def __init__(self, max_bytes: int, room: BodyRoom) -> None:
        self._max_bytes = max_bytes
        self._room = room
        self._size = 0
        # Not a list of chunks: a client that sends two bytes a chunk would make it weigh thirty times its body.
        self._first = b""
        self._rest: BytesIO | None = None
        """All of it, from the second chunk on."""

    def add(self, data: bytes) -> RequestError | None:
        """Keep a chunk; the error that it is too much, or None."""
        # Not raised: the trace would keep bodies alive until cycles are collected, 20 MiB of them in a soak.
        self._size += len(data)
        self._room.taken += len(data)
        if self._size > self._max_bytes:
            return too_large(self._max_bytes)
        if self._room.taken > self._room.limit and self._size > SMALL_BYTES:
            return ResourceExhaustedError("too many large request bodies are under way, try again later")
        if not self._first:
            self._first = data
        elif data:
            if self._rest is None:
                self._rest = BytesIO()
                self._rest.write(self._first)
            self._rest.write(data)
        return None

    def body(self) -> bytes:
        """What has come. Nothing is added afterwards, and the room stays taken until `drop`."""
        body = self._first if self._rest is None else self._rest.getvalue()
        self._first, self._rest = b"", None
        return body

    def drop(self) -> None:
        """Nobody needs it any more."""
        self._room.taken -= self._size
        self._size = 0
        self._first, self._rest = b"", None


def too_large(max_bytes: int) -> PayloadTooLargeError:
    """The answer to a body beyond the limit."""
    return PayloadTooLargeError(f"request body exceeds the limit of {max_bytes} bytes")
