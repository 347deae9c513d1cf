"""The steps of a request one by one, without sockets: what a figure of the README is made of.

Each is run alone in this process on the CPU's clock (threads included), in batches long enough for the clock; a figure is the
median of the batches. The calibration is among them: everything absolute is also printed as a multiple of it.
"""

import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from bench import bodies, configs, direct
from bench.records import Spread, Step, Work
from epp import config, names
from epp._proto import ext_proc_pb2
from epp.datastore import EndpointsListed, PoolState
from epp.domain import (
    Decision,
    DecisionId,
    EndCause,
    Endpoint,
    EndpointId,
    EngineHash,
    InferenceRequest,
    ProfileResult,
    RequestEnd,
    TokenizedRequest,
    TokenState,
)
from epp.extproc import access_log, codec
from epp.extproc.events import ReplyRequestBody, ReplyResponseBody, RequestHeaders, Route
from epp.extproc.exchange import Exchange
from epp.extproc.gathering import BodyRoom
from epp.kvcache.events import Batch, BlockStored
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import pack_tokens
from epp.observability.logs import LogReporter
from epp.observability.prometheus import PrometheusReporter
from epp.picking import Director
from epp.picking.answer_seen import AnswerSeen
from epp.reporter import Reporter, Reporters
from epp.requests.parsers import RequestParsers
from epp.scheduling import registry
from epp.scheduling.interfaces import Cycle
from epp.scheduling.registry import Collaborators
from epp.scheduling.scheduler import Scheduler
from epp.server.conversation import Context, Conversation
from epp.testing.builders import make_endpoint
from epp.testing.waiting import awaited
from epp.tokenization import LocalTokenizer, LocalTokenizerConfig, Tokenization

BATCHES: Final = 5
BATCH_S: Final = 0.1
QUICK_BATCH_S: Final = 0.03
WARMING: Final = 5

HEADERS: Final = {":path": "/v1/chat/completions", names.REQUEST_ID: "5bd9e6c8-7d25-4b85-9f0e-3a8e8a9e3d11"}

INSTANCE: Final = "bench"
DECISION: Final = access_log.new_id(INSTANCE, "5bd9e6c8-7d25-4b85-9f0e-3a8e8a9e3d11")

BLOCK_SIZE: Final = 16
MATCHED_TOKENS: Final = 8000
MAX_BODY: Final = 64 << 20

# What Envoy makes of a large body: a message for each time its buffer was full (per_connection_buffer_limit_bytes).
ENVOY_CHUNK: Final = 32_768
SSE_CHUNK: Final = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'

Operation = Callable[[], object]


def calibrate() -> Sequence[float]:
    """Seconds of one json.loads of the 220 KB body, a few times."""
    body = bodies.chats(bodies.SIZES["220 KB"], count=1)[0]
    return _timed(lambda: json.loads(body), quick=True).values


async def measure(model_folder: Path, *, quick: bool) -> list[Step]:
    """All steps, in the order of a request's life."""
    chats = {name: bodies.chats(size) for name, size in bodies.SIZES.items()}
    operations: dict[str, Operation] = {}
    for name, sized in chats.items():
        operations[f"read the body, {name}"] = _parse(sized, whole=True)
        operations[f"read of the body what routing needs, {name}"] = _parse(sized, whole=False)
        operations[f"exchange and codec, {name}"] = _exchange(sized[0])
    operations["a response message (FULL_DUPLEX_STREAMED)"] = _response_message()
    operations["an access-log entry"] = _access_log()
    operations["books: metrics and log of a request"] = _reporting(model_folder)
    operations[f"index: match {MATCHED_TOKENS:,} tokens, 8 endpoints hold them"] = _match()
    for work in (Work.DEFAULT, Work.PRECISE):
        for count in (8, 1000):
            operations[f"schedule, {work.value}, {count:,} endpoints"] = _schedule(work, count, model_folder)
    steps = [Step(name, _timed(operation, quick=quick)) for name, operation in operations.items()]
    steps += _conversations(chats, model_folder, quick=quick)
    return steps + [step async for step in _decisions(chats, model_folder, quick=quick)]


def _timed(operation: Operation, *, quick: bool) -> Spread:
    """Seconds of CPU of one call."""
    for _ in range(WARMING):
        started = time.perf_counter()
        operation()
    count = _count(time.perf_counter() - started, quick=quick)
    values = []
    for _ in range(BATCHES):
        before = time.process_time()
        for _ in range(count):
            operation()
        values.append((time.process_time() - before) / count)
    return Spread(tuple(values))


def _count(once: float, *, quick: bool) -> int:
    """Calls a batch."""
    return max(1, int((QUICK_BATCH_S if quick else BATCH_S) / once))


# --- steps that need nothing but themselves ---------------------------------------------------------------------


def _parse(chats: Sequence[bytes], *, whole: bool) -> Operation:
    parse, turns = RequestParsers(whole_bodies=whole).parse, itertools.cycle(chats)
    return lambda: parse(HEADERS, next(turns))


def _exchange(body: bytes) -> Operation:
    messages = list(_request_messages(body))
    route = Route("10.0.0.1:8000", DECISION)

    def operation() -> None:
        exchange = Exchange(MAX_BODY, BodyRoom(MAX_BODY))
        for message in messages:
            exchange.receive(codec.decode(message))
        for reply in exchange.resolve(route):
            codec.encode(reply)

    return operation


def _request_messages(body: bytes) -> Iterator[bytes]:
    yield direct.request_messages(body)[0]
    for start in range(0, len(body), ENVOY_CHUNK):
        message = ext_proc_pb2.ProcessingRequest()
        message.request_body.body = body[start : start + ENVOY_CHUNK]
        message.request_body.end_of_stream = start + ENVOY_CHUNK >= len(body)
        yield message.SerializeToString()


def _response_message() -> Operation:
    exchange = Exchange(MAX_BODY, BodyRoom(MAX_BODY))
    exchange.receive(RequestHeaders({}, end_of_stream=True))
    endpoint = make_endpoint()
    chosen = ProfileResult("default", [endpoint], [], [], [endpoint])
    seen = AnswerSeen(Decision(DECISION, "request", chosen, {}, None, None), Reporter(), time.monotonic, 0.0)
    exchange.resolve(Route("10.0.0.1:8000", DECISION, listener=seen))
    head, chunk = ext_proc_pb2.ProcessingRequest(), ext_proc_pb2.ProcessingRequest()
    head.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    head.response_headers.headers.headers.add(key="content-type", raw_value=b"text/event-stream")
    exchange.receive(codec.decode(head.SerializeToString()))
    chunk.response_body.body = SSE_CHUNK
    message = chunk.SerializeToString()

    def operation() -> None:
        for reply in exchange.receive(codec.decode(message)):
            assert isinstance(reply, ReplyResponseBody | ReplyRequestBody)
            codec.encode(reply)

    return operation


def _access_log() -> Operation:
    route = Route("10.0.0.1:8000", DECISION)
    exchange = Exchange(MAX_BODY, BodyRoom(MAX_BODY))
    exchange.receive(RequestHeaders({}, end_of_stream=True))
    entry = direct.log_entry(codec.encode(exchange.resolve(route)[0]))
    assert entry is not None
    data = direct.log_message([entry])
    return lambda: access_log.decode(data, INSTANCE)


def _match() -> Operation:
    tokens = _tokens()
    index = PrefixIndex(Reporter(), default_block_size=BLOCK_SIZE)
    endpoints = [EndpointId(f"default/pod-{i}") for i in range(8)]
    _fill(index, endpoints, tokens)
    return lambda: index.match(TokenizedRequest(TokenState.EXACT, [tokens]), endpoints, 0.0)


def _tokens() -> list[int]:
    rng = random.Random(1)
    return [rng.randrange(150_000) for _ in range(MATCHED_TOKENS)]


def _fill(index: PrefixIndex, endpoints: Sequence[EndpointId], tokens: Sequence[int]) -> None:
    hashes = [EngineHash(number) for number in range(1, 1 + len(tokens) // BLOCK_SIZE)]
    for endpoint in endpoints:
        index.apply(endpoint, 0, Batch(0.0, 0, [BlockStored(hashes, None, pack_tokens(tokens), BLOCK_SIZE)]))


# --- steps that need a scheduler --------------------------------------------------------------------------------


class _Cycles:
    """Runs scheduling cycles, with 32 requests in flight at any time."""

    def __init__(self, work: Work, endpoints: Sequence[Endpoint], model_folder: Path, index: PrefixIndex) -> None:
        effective = _config(work, model_folder)
        self._scheduler: Scheduler = config.build(effective, Collaborators(index=index), Reporter()).scheduler
        self._endpoints = endpoints
        self._numbers = itertools.count()
        self._rng = random.Random(1)
        self._open: list[Decision] = []
        self.parse = RequestParsers(effective.parsers, whole_bodies=effective.reads_bodies).parse

    def decide(self, request: InferenceRequest, tokens: TokenizedRequest | None) -> Decision:
        """Choose, and end the oldest request."""
        number = next(self._numbers)
        cycle = Cycle(request, tokens, self._endpoints, time.monotonic(), self._rng)
        decision = self._scheduler.schedule(cycle, decision_id=DecisionId(f"decision-{number}"), request_id="request")
        self._open.append(decision)
        if len(self._open) > 32:
            oldest = self._open.pop(0)
            self._scheduler.ended(oldest, RequestEnd(oldest.id, EndCause.FINISHED, status=200))
        return decision


def _config(work: Work, model_folder: Path) -> config.EffectiveConfig:
    return config.load(configs.render(work, endpoints=Path("endpoints.json"), model_folder=model_folder), "bench", registry.load())


def _reporters() -> Reporter:
    """As a serving process has them."""
    return Reporters([PrometheusReporter(CollectorRegistry(), pool_name="bench", build_ref="bench"), LogReporter()])


def _endpoints(count: int) -> list[Endpoint]:
    return [make_endpoint(i, waiting=i % 7, running=i % 5, kv_cache_usage=(i % 10) / 10) for i in range(count)]


def _schedule(work: Work, count: int, model_folder: Path) -> Operation:
    """Eight endpoints hold the prompt, however many there are."""
    endpoints = _endpoints(count)
    index = PrefixIndex(Reporter(), default_block_size=BLOCK_SIZE)
    tokens = _tokens()[:1100]
    _fill(index, [endpoint.id for endpoint in endpoints[:8]], tokens)
    exact = TokenizedRequest(TokenState.EXACT, [tokens]) if work is Work.PRECISE else None
    cycles = _Cycles(work, endpoints, model_folder, index)
    request = cycles.parse(HEADERS, bodies.chats(bodies.SIZES["5 KB"], count=1)[0])
    return lambda: cycles.decide(request, exact)


def _reporting(model_folder: Path) -> Operation:
    reporter = _reporters()
    index = PrefixIndex(reporter, default_block_size=BLOCK_SIZE)
    cycles = _Cycles(Work.DEFAULT, _endpoints(8), model_folder, index)
    decision = cycles.decide(cycles.parse(HEADERS, bodies.chats(bodies.SIZES["5 KB"], count=1)[0]), None)
    end = RequestEnd(decision.id, EndCause.FINISHED, status=200, duration_s=0.5, bytes_sent=2000, bytes_received=5120)

    def operation() -> None:
        reporter.stream_opened()
        reporter.decided(decision)
        reporter.stream_closed("OK", 0.001)
        reporter.ended(decision, end)

    return operation


async def _decisions(chats: Mapping[str, Sequence[bytes]], model_folder: Path, *, quick: bool) -> AsyncIterator[Step]:
    """Body in, endpoint out, tokens included: their words have been seen, the prompts take turns."""
    tokenization = Tokenization(bodies.MODEL, LocalTokenizer(LocalTokenizerConfig(path=str(model_folder))))
    await tokenization.start()
    try:
        for name, sized in chats.items():
            cycles = _Cycles(Work.PRECISE, _endpoints(8), model_folder, PrefixIndex(Reporter(), default_block_size=BLOCK_SIZE))
            turns = itertools.cycle(sized)

            async def tokens(cycles: _Cycles = cycles, turns: Iterator[bytes] = turns) -> TokenizedRequest:
                return await awaited(tokenization.tokenize(cycles.parse(HEADERS, next(turns))))

            async def decision(cycles: _Cycles = cycles, turns: Iterator[bytes] = turns) -> None:
                request = cycles.parse(HEADERS, next(turns))
                cycles.decide(request, await awaited(tokenization.tokenize(request)))

            for _ in sized:
                assert (await tokens()).state is TokenState.EXACT
            yield Step(f"tokens, body read, {name}", await _timed_async(tokens, quick=quick))
            yield Step(f"whole decision, precise, 8 endpoints, {name}", await _timed_async(decision, quick=quick))
    finally:
        await tokenization.close()


def _conversations(chats: Mapping[str, Sequence[bytes]], model_folder: Path, *, quick: bool) -> Iterator[Step]:
    """All that happens to a request but its transport and its log entry: conversation, codec, random pick, books, metrics."""
    effective = _config(Work.BARE, model_folder)
    reporter = _reporters()
    pool = PoolState()
    pool.apply(EndpointsListed(_endpoints(8)))
    given, expected = itertools.count(), itertools.count()
    index = PrefixIndex(reporter, default_block_size=BLOCK_SIZE)
    director = Director(
        parse=RequestParsers(effective.parsers, whole_bodies=effective.reads_bodies).parse,
        tokenize=None,
        snapshot=pool.snapshot,
        scheduler=config.build(effective, Collaborators(index=index), reporter).scheduler,
        reporter=reporter,
        now=time.monotonic,
        rng=random.Random(1),
        new_id=lambda: str(next(given)),
        new_request_id=lambda: str(next(given)),
        instance=INSTANCE,
    )

    context = Context(director, reporter, MAX_BODY, time.monotonic, logs=("",), room=BodyRoom(MAX_BODY))
    for name, sized in chats.items():
        turns = itertools.cycle([list(_request_messages(body)) for body in sized])

        def whole(turns: Iterator[Sequence[bytes]] = turns) -> None:
            conversation = Conversation(context, "")
            for message in next(turns):
                conversation.receive(message)
                conversation.sent()
            conversation.close()
            decision = access_log.new_id(INSTANCE, str(next(expected)))
            director.ended(RequestEnd(decision, EndCause.FINISHED, status=200, duration_s=0.5, bytes_sent=2000))

        yield Step(f"whole conversation without transport, {name}", _timed(whole, quick=quick))
    assert not director.open_decisions


async def _timed_async(operation: Callable[[], Awaitable[object]], *, quick: bool) -> Spread:
    """As `_timed`."""
    for _ in range(WARMING):
        started = time.perf_counter()
        await operation()
    count = _count(time.perf_counter() - started, quick=quick)
    values = []
    for _ in range(BATCHES):
        before = time.process_time()
        for _ in range(count):
            await operation()
        values.append((time.process_time() - before) / count)
    return Spread(tuple(values))
