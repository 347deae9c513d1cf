"""The tokens an engine says it used, read from its answer while that passes by (spec/protocol.md 2.3.11, D12).

`UsageReader` is fed the chunks of one answer, a JSON document or server-sent events, cut anywhere; how they are cut changes
nothing. It needs not know the API: the places where APIs state usage exclude each other. What cannot be read says nothing:
no usage, never an error. Memory is bounded by DOCUMENT_BYTES or LINE_BYTES, and a line without a word of usage costs one
search for it. Not read: answers in gRPC frames, compressed answers, and events whose data goes over several lines (no
engine sends any). Pure; called on the event loop for every chunk of answers that go through ext_proc.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from epp.domain import Usage

# Takes 5 ms to read. Embeddings of a large batch are longer, and go unread; a chat answer is not a tenth of this.
DOCUMENT_BYTES: Final = 2 << 20

# The Responses API repeats the whole answer in the one event that states usage.
LINE_BYTES: Final = 1 << 20

# What is longer is no count of tokens.
_MAX_DIGITS: Final = 12


class _Document(msgspec.Struct):
    """What an answer, or one event of it, may hold; everything else is skipped undecoded."""

    usage: object = None
    meta_info: object = None
    response: msgspec.Raw = msgspec.Raw(b"")
    message: msgspec.Raw = msgspec.Raw(b"")


_decode: Final = msgspec.json.Decoder(_Document).decode

# A document without one of these holds no usage. Inside a JSON string the quotes would be escaped.
_USAGE: Final = b'"usage"'
_META_INFO: Final = b'"meta_info"'


class UsageReader:
    """Reads the usage of one answer."""

    __slots__ = ("_kept", "_limit", "_overlong", "_stream", "_usage")

    def __init__(self, *, event_stream: bool) -> None:
        self._stream = event_stream
        self._limit = LINE_BYTES if event_stream else DOCUMENT_BYTES
        self._kept = bytearray()
        # What is being kept grew beyond the limit: skip to its end.
        self._overlong = False
        self._usage = Usage()

    def feed(self, data: bytes) -> None:
        """The next chunk."""
        first, last = (data.find(b"\n"), data.rfind(b"\n")) if self._stream else (-1, -1)
        if first < 0:
            self._keep(data)
            return
        if self._kept or self._overlong:
            self._keep(data[:first])
            self._take_kept()
            first += 1
        else:
            first = 0
        if _is_marked(data, first, last):
            for line in data[first:last].split(b"\n"):
                self._take_line(line)
        if last + 1 < len(data):
            self._keep(data[last + 1 :])

    def finish(self) -> Usage | None:
        """The answer is over: what it said; None: nothing. Once."""
        self._take_kept()
        usage = self._usage
        if usage.total_tokens is None and usage.prompt_tokens is not None and usage.completion_tokens is not None:
            usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
        return None if usage == Usage() else usage

    # --- cutting ------------------------------------------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        """The beginning of a line, or of the document."""
        if self._overlong or len(self._kept) + len(data) > self._limit:
            self._overlong = True
            self._kept.clear()
        else:
            self._kept += data

    def _take_kept(self) -> None:
        kept = bytes(self._kept)
        self._kept.clear()
        self._overlong = False
        if self._stream:
            self._take_line(kept)
        else:
            self._take_document(kept)

    def _take_line(self, line: bytes) -> None:
        if line.startswith(b"data:") and len(line) <= self._limit:
            self._take_document(line[len(b"data:") :])

    # --- reading ------------------------------------------------------------------------------------------------

    def _take_document(self, text: bytes) -> None:
        if not _is_marked(text, 0, len(text)):
            return
        try:
            document = _decode(text)
            # OpenAI's response.completed, Anthropic's message_start.
            inner = [_decode(raw).usage for raw in (document.response, document.message) if bytes(memoryview(raw)[:1]) == b"{"]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # what cannot be read says nothing
            return
        meta = document.meta_info  # SGLang's own API; it counts in every event, and what counts is the last
        if not isinstance(meta, dict) or meta.get("finish_reason") is None:
            meta = None
        for fields in (*inner, document.usage, meta):
            if isinstance(fields, dict):
                self._merge(fields)

    def _merge(self, fields: Mapping[str, object]) -> None:
        """Later numbers replace earlier ones, one by one.

        So the last of the engines counts that state usage in every event, and input and output of those that state them apart.
        """
        usage = self._usage
        prompt = _tokens(fields, "prompt_tokens", "input_tokens")
        completion = _tokens(fields, "completion_tokens", "output_tokens")
        total = _tokens(fields, "total_tokens")
        cached = _tokens(fields, "cached_tokens", "cache_read_input_tokens")
        for key in ("prompt_tokens_details", "input_tokens_details"):
            details = fields.get(key)
            if cached is None and isinstance(details, dict):
                cached = _tokens(details, "cached_tokens")
        usage.prompt_tokens = usage.prompt_tokens if prompt is None else prompt
        usage.completion_tokens = usage.completion_tokens if completion is None else completion
        usage.total_tokens = usage.total_tokens if total is None else total
        usage.cached_tokens = usage.cached_tokens if cached is None else cached


def _is_marked(data: bytes, begin: int, end: int) -> bool:
    return data.find(_USAGE, begin, end) >= 0 or data.find(_META_INFO, begin, end) >= 0


def _tokens(fields: Mapping[str, object], *keys: str) -> int | None:
    """The first of the keys that holds a count: a number, or one written as a string."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**_MAX_DIGITS:
            return value
    return None
