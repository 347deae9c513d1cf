"""The body of a request until it is whole: chunks kept together, up to a limit. Pure; one a stream, of its `exchange`."""

from io import BytesIO


class Gathering:
    """The chunks so far."""

    __slots__ = ("_first", "_more", "_size", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Bytes of the longest body."""
        self._size = 0
        self._first = b""
        # Not a list of chunks: a client that sends two bytes a chunk would make it weigh thirty times its body.
        self._more: BytesIO | None = None
        """All of it, from the second chunk on; most bodies come in one."""

    def add(self, data: bytes) -> bool:
        """Keep a chunk; False: it is too much."""
        before = self._size
        self._size = before + len(data)
        if self._size > self.limit:
            return False
        if not before:
            self._first = data
        else:
            if self._more is None:
                self._more = BytesIO()
                self._more.write(self._first)
            self._more.write(data)
        return True

    def whole(self) -> bytes:
        """What came, in one."""
        return self._first if self._more is None else self._more.getvalue()

    def drop(self) -> None:
        """Nobody needs it any more."""
        self._first, self._more = b"", None
