"""gRPC's use of HTTP/2 headers (gRPC over HTTP/2): which calls are none, deadlines, and how a status is told. Pure.

Headers are pairs of bytes, names in lower case. Called by the fast transport once or twice per call.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from epp.server.status import Ending, Status

Headers = Sequence[tuple[bytes, bytes]]

RESPONSE: Final[Headers] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
"""The head of an answer with messages."""

_OK_TRAILERS: Final[Headers] = ((b"grpc-status", b"0"),)
_ACCEPTED_ENCODINGS: Final = b"identity,gzip"
_CONTENT_TYPES: Final = frozenset((b"application/grpc", b"application/grpc+proto"))

# The specification wants a client to send few bytes here, and a log line should stay one.
_MAX_DETAILS: Final = 1000


def refusal(head: Mapping[bytes, bytes], *, known: bool) -> Headers | None:
    """The whole answer to what is no call of ours; None: it is one. `known`: its path names a method."""
    if head.get(b":method") != b"POST":
        return ((b":status", b"405"), (b"allow", b"POST"))
    if head.get(b"content-type", b"").partition(b";")[0].rstrip().lower() not in _CONTENT_TYPES:
        return ((b":status", b"415"),)
    if not known:
        path = head.get(b":path", b"").decode("utf-8", "replace")
        return without_messages(Ending(Status.UNIMPLEMENTED, f"no method {path}"))
    encoding = head.get(b"grpc-encoding", b"identity")
    if encoding not in (b"identity", b"gzip"):
        details = f"messages compressed with {encoding.decode('utf-8', 'replace')!r} are not understood"
        return (*without_messages(Ending(Status.UNIMPLEMENTED, details)), (b"grpc-accept-encoding", _ACCEPTED_ENCODINGS))
    return None


def timeout_s(value: bytes) -> float | None:
    """Seconds of a grpc-timeout, such as b"100m"; None: it is none."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _UNITS[match[2]] if match else None


_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def trailers(ending: Ending) -> Headers:
    """What follows the last message."""
    if ending.status is Status.OK:
        return _OK_TRAILERS
    return ((b"grpc-status", b"%d" % ending.status), (b"grpc-message", _percent_encoded(ending.details)))


def without_messages(ending: Ending) -> Headers:
    """A whole answer: head and trailers in one ("Trailers-Only")."""
    return (*RESPONSE, *trailers(ending))


def _percent_encoded(text: str) -> bytes:
    """Printable ASCII but the percent sign as it is, of the rest the UTF-8 bytes as %XX."""
    return b"".join(_ENCODED[byte] for byte in text[:_MAX_DETAILS].encode("utf-8", "replace"))


_ENCODED: Final = tuple(b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in range(256))
