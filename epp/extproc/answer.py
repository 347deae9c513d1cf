"""The response direction of one exchange: what each message of an answer is replied with.

Made by `exchange` when the first message of an answer comes, hence never where the data plane keeps answers from us.
Nothing is changed on the way but a rewritten model name, which is turned back. How it goes on depends on the body mode
(spec/protocol.md 2.1.2, 2.3.8):
- FULL_DUPLEX_STREAMED: events of a stream go on as they come; a JSON answer is held until it is whole and goes on as one;
- BUFFERED, STREAMED, BUFFERED_PARTIAL: exactly one reply a message, empty unless the body is changed.
"""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Final

from epp.extproc.events import (
    BodyMode,
    ContinueResponseBody,
    ReplaceResponseBody,
    Reply,
    ReplyResponseBody,
    ReplyResponseHeaders,
    ReplyResponseTrailers,
    ResponseBody,
    ResponseHeaders,
    Route,
)

# Envoy recommends chunks of at most 64 KB; with the message around it 62,000 bytes of body stay below (spec/protocol.md 0.1).
CHUNK_BYTES: Final = 62_000

# An answer longer than this is not held until it is whole: it goes on as it comes, so that memory stays bounded.
HELD_BYTES: Final = 4 << 20


class Answer:
    """One answer, as far as it came by."""

    __slots__ = ("_duplex", "_held", "_listener", "_names", "_stream", "_whole", "complete")

    def __init__(self, route: Route | None, mode: BodyMode | None) -> None:
        """`route` None: the data plane answers a request that was never routed. `mode` None: it does not tell, and FULL_DUPLEX_STREAMED is meant."""
        self.complete = False
        """It came by to its end."""
        self._duplex = mode in (None, BodyMode.FULL_DUPLEX_STREAMED)
        self._whole = mode is BodyMode.BUFFERED
        self._listener = None if route is None else route.listener
        self._stream = None if route is None else route.stream
        self._names = None if route is None or route.model_names is None else ModelNameBack(*route.model_names)
        self._held: BytesIO | None = None

    def began(self, event: ResponseHeaders) -> list[Reply]:
        """The response headers."""
        self.complete = event.end_of_stream
        if self._duplex and not event.end_of_stream and self._is_one_document(event.content_type):
            self._held = BytesIO()
        if self._listener is not None:
            self._listener.began(event.status, event_stream=event.content_type == "text/event-stream", served=event.served)
        return [ReplyResponseHeaders()]

    def body(self, event: ResponseBody) -> list[Reply]:
        """One chunk."""
        data, end = event.data, event.end_of_stream
        self.complete = end
        if self._listener is not None:
            self._listener.body(data)
        if self._names is not None:
            # Where each message is answered on its own, there is no later reply that could take what is kept back.
            data = self._names.feed(data, end=end or not self._duplex)
        if not self._duplex:
            return [ContinueResponseBody() if data == event.data else ReplaceResponseBody(data, whole=self._whole)]
        if self._held is not None:
            data = self._hold(data, end=end)
            if not data and not end:
                return []
        return [ReplyResponseBody(chunk, last and end) for chunk, last in chunks(data)]

    def trailers(self) -> list[Reply]:
        """The answer ends with trailers (spec/protocol.md S8, S9)."""
        self.complete = True
        return [*self.release(), ReplyResponseTrailers()]

    def release(self) -> list[Reply]:
        """What is held back, in order to let the answer go on without us."""
        data = self._names.feed(b"", end=True) if self._names is not None else b""
        if self._held is not None:
            data = self._held.getvalue() + data
            self._held = None
        return [ReplyResponseBody(chunk, end_of_stream=False) for chunk, _ in chunks(data)] if data else []

    def _is_one_document(self, content_type: str) -> bool:
        """JSON, or what a request that was read asked for in one piece; a stream nobody announced must not be held."""
        return not self._stream and (
            content_type == "application/json" or (self._stream is False and content_type.startswith("application/grpc"))
        )

    def _hold(self, data: bytes, *, end: bool) -> bytes:
        """What goes on now: nothing until the answer is whole, or too long to be held."""
        held = self._held
        assert held is not None
        if end and not held.tell():
            return data
        held.write(data)
        if not end and held.tell() <= HELD_BYTES:
            return b""
        self._held = None
        return held.getvalue()


class ModelNameBack:
    """Puts the name the client used where the model server names the model it was asked for (spec/protocol.md 2.3.8).

    Only `"model":"..."` is looked for, without or with one space: engines write no other. Inside a JSON string the
    quotes would be escaped, so text of the model cannot match. A name cut by a chunk border is found too (D13).
    """

    __slots__ = ("_replacements", "_tail")

    def __init__(self, asked: str, used: str) -> None:
        self._replacements = tuple((b'"model":' + space + _json(asked), b'"model":' + space + _json(used)) for space in (b"", b" "))
        self._tail = b""

    def feed(self, data: bytes, *, end: bool) -> bytes:
        """The bytes that can go on; an unfinished match stays here until its rest comes or the answer ends."""
        data = self._tail + data
        self._tail = b""
        for asked, used in self._replacements:
            if asked in data:
                data = data.replace(asked, used)
        if end:
            return data
        kept = max(_overlap(data, asked) for asked, _ in self._replacements)
        if kept:
            data, self._tail = data[:-kept], data[-kept:]
        return data


def _json(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode(errors="replace")


def _overlap(data: bytes, pattern: bytes) -> int:
    """Bytes at the end of `data` that begin `pattern` without completing it."""
    start = data.rfind(b'"', max(0, len(data) - len(pattern) + 1))
    longest = 0
    while start >= 0:
        if pattern.startswith(data[start:]):
            longest = len(data) - start
        start = data.rfind(b'"', max(0, len(data) - len(pattern) + 1), start)
    return longest


def chunks(body: bytes) -> Iterator[tuple[bytes | memoryview, bool]]:
    """The body in pieces of at most CHUNK_BYTES, each with "is the last"; one empty piece for an empty body."""
    size = len(body)
    if size <= CHUNK_BYTES:
        yield body, True
        return
    view = memoryview(body)
    for start in range(0, size, CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES], start + CHUNK_BYTES >= size
