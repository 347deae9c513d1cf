"""The tokens an engine says it used, read from an answer that is gRPC messages (spec/protocol.md 2.3.11).

As `usage`, which does it for JSON: fed the chunks of one answer, cut anywhere; what cannot be read says nothing. Memory is
bounded by MESSAGE_BYTES: a longer message, and a compressed one, is passed over. Pure; on the event loop.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from google.protobuf.message import DecodeError

from epp._proto import inference_pb2 as pb
from epp.domain import AnswerFormat, Usage
from epp.requests.usage import UsageReader

MESSAGE_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 5


def usage_reader(answer: AnswerFormat, *, event_stream: bool) -> "UsageReader | GrpcUsageReader":
    """The reader of one answer; `event_stream`: it is sent as server-sent events."""
    if answer is AnswerFormat.JSON:
        return UsageReader(event_stream=event_stream)
    return GrpcUsageReader(answer)


class GrpcUsageReader:
    """Reads the usage of one answer."""

    __slots__ = ("_buffer", "_json", "_read", "_skip", "_usage")

    def __init__(self, answer: AnswerFormat) -> None:
        """`answer`: one of those that are gRPC messages."""
        self._buffer = bytearray()
        self._skip = 0
        """Bytes still to come of a message that is passed over."""
        self._usage = Usage()
        self._json: UsageReader | None = None
        readers: dict[AnswerFormat, Callable[[bytes], None]] = {
            AnswerFormat.VLLM_GENERATE: self._generated,
            AnswerFormat.VLLM_EMBED: self._embedded,
            AnswerFormat.HTTP_BODY: self._http_body,
        }
        self._read = readers[answer]

    def feed(self, data: bytes) -> None:
        """The next chunk."""
        passed = min(self._skip, len(data))
        self._skip -= passed
        self._buffer += data[passed:]
        while len(self._buffer) >= _HEADER_BYTES:
            end = _HEADER_BYTES + int.from_bytes(self._buffer[1:_HEADER_BYTES], "big")
            unread = end > MESSAGE_BYTES or self._buffer[0] != 0
            if len(self._buffer) < end and not unread:
                return
            if not unread:
                self._take(bytes(self._buffer[_HEADER_BYTES:end]))
            self._skip = max(end - len(self._buffer), 0)
            del self._buffer[:end]

    def finish(self) -> Usage | None:
        """The answer is over: what it said; None: nothing. Once."""
        if self._json is not None:
            return self._json.finish()
        usage = self._usage
        if usage == Usage():
            return None
        usage.total_tokens = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
        return usage

    def _take(self, message: bytes) -> None:
        with suppress(DecodeError):  # what cannot be read says nothing
            self._read(message)

    def _generated(self, data: bytes) -> None:
        """A chunk of a stream counts from the beginning, and a field that is zero is not sent: the last that is there counts."""
        response = pb.GenerateResponse.FromString(data)
        said = response.complete if response.WhichOneof("response") == "complete" else response.chunk
        usage = self._usage
        usage.prompt_tokens = said.prompt_tokens or usage.prompt_tokens
        usage.completion_tokens = said.completion_tokens or usage.completion_tokens
        usage.cached_tokens = said.cached_tokens or usage.cached_tokens

    def _embedded(self, data: bytes) -> None:
        self._usage.prompt_tokens = pb.EmbedResponse.FromString(data).prompt_tokens or None

    def _http_body(self, data: bytes) -> None:
        text = pb.HttpBody.FromString(data).data
        if self._json is None:
            self._json = UsageReader(event_stream=text.startswith(b"data:"))
        self._json.feed(text)
