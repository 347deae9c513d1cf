"""A stand-in for model servers that costs next to nothing: `python -m bench.model_server --endpoints-file FILE`.

Listens on several ports, writes them to an endpoints file, answers every POST with the same few bytes once its body has arrived
whole (chunked too, as Envoy sends it), or, where the header CHUNKS says how many, with a stream of server-sent events at a fixed
pace. Answers GET /metrics with a page as short as a scrape allows. One process, one loop; trusts its only client, Envoy.
"""

import argparse
import asyncio
import json
import re
from pathlib import Path
from typing import cast

import uvloop

from bench.http1 import BodyEnd, length_of

CHUNKS = "x-bench-chunks"

# Slow enough that Envoy meets every chunk alone, fast enough that 32 answers at a time keep it busy.
PACE_S = 0.004

_ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"}}]}'
_EVENT = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
_METRICS = b"vllm:num_requests_waiting 0\nvllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.25\n"

_CHUNKS = re.compile(CHUNKS.encode() + rb": (\d+)")


def _response(body: bytes, content_type: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (content_type, len(body), body)


_WHOLE = _response(_ANSWER, b"application/json")
_PAGE = _response(_METRICS, b"text/plain; version=0.0.4")
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)


class _Connection(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._body: BodyEnd | None = None
        """None: the head is not whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._body is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head, data = self._head[:end], self._head[end + 4 :]
            length = length_of(self._head)
            self._body = BodyEnd(0 if length is None and not self._head.startswith(b"POST") else length)
        if self._body.reached(data):
            self._answer()

    def _answer(self) -> None:
        head, self._head, self._body = self._head, b"", None
        if head.startswith(b"GET"):
            self._write(_PAGE)
        elif asked := _CHUNKS.search(head):
            self._write(_STREAM_HEAD)
            self._stream(int(asked[1]))
        else:
            self._write(_WHOLE)

    def _stream(self, left: int) -> None:
        if left:
            self._loop.call_later(PACE_S, self._next, left)
        else:
            self._write(b"0\r\n\r\n")

    def _next(self, left: int) -> None:
        self._write(_CHUNK)
        self._stream(left - 1)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve(endpoints_file: Path, count: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(_Connection, "127.0.0.1", 0) for _ in range(count)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    endpoints = [{"name": f"pod-{i}", "address": "127.0.0.1", "port": str(port)} for i, port in enumerate(ports)]
    draft = endpoints_file.with_suffix(".draft")
    draft.write_text(json.dumps({"endpoints": endpoints}, indent=1))  # once, before anybody waits
    draft.rename(endpoints_file)
    await asyncio.Event().wait()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="stand-in model servers for make bench")
    parser.add_argument("--endpoints-file", type=Path, required=True, help="written when they listen")
    parser.add_argument("--count", type=int, default=8)
    args = parser.parse_args()
    uvloop.run(_serve(args.endpoints_file, args.count))


if __name__ == "__main__":
    main()
