"""As much of HTTP/1 as a load generator and a stand-in for model servers share: where the body of a message ends."""

import re
from typing import Final

_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


class BodyEnd:
    """When the body of one message is whole. Texts in it hold no bare CR LF, so what looks like the last chunk is that and nothing else."""

    __slots__ = ("_left", "_tail")

    def __init__(self, length: int | None) -> None:
        """`length` None: chunked."""
        self._left = length
        self._tail = b""

    def reached(self, data: bytes) -> bool:
        """Whether these bytes are its last ones."""
        if self._left is None:
            self._tail = (self._tail + data[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
            return self._tail == _LAST_CHUNK
        self._left -= len(data)
        return self._left <= 0


def length_of(head: bytes) -> int | None:
    """What Content-Length says; None: it is not there."""
    found = _LENGTH.search(head)
    return int(found[1]) if found else None
