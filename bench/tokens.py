"""Template and tokens of chats, the loop's longest callback meanwhile, and what a tokenizer leaves in memory.

Each chat is tokenized as a request is, from the parsed body on. *Unseen*: a conversation nobody sent before. *Prefix seen*: the
last one with one more question, as the next turn of a conversation is. Run in this process on the CPU's clock; memory in a
process of its own: `python -m bench.tokens FOLDER` prints bytes.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench import bodies
from bench.records import Spread, Step
from epp import names
from epp.domain import InferenceRequest, TokenState
from epp.requests.parsers import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import LocalTokenizer, LocalTokenizerConfig, Tokenization

SIZES: Final = {"5 KB": 5 << 10, "32 KB": 32 << 10, "220 KB": 220 << 10}
LONG: Final = 400 << 10
BATCHES: Final = 5
# Bytes of a batch: enough for the clock.
BATCH_BYTES: Final = 2 << 20
QUICK_BATCH_BYTES: Final = 512 << 10
MEMORY_PROMPTS: Final = 60

_HEADERS: Final = {":path": "/v1/chat/completions", names.REQUEST_ID: "5bd9e6c8-7d25-4b85-9f0e-3a8e8a9e3d11"}


async def measure(model_folder: Path, *, quick: bool) -> list[Step]:
    """The rows of this module."""
    tokenization = await _started(model_folder)
    seeds = itertools.count(1000)
    steps = []
    try:
        for name, size in SIZES.items():
            count = max(2, (QUICK_BATCH_BYTES if quick else BATCH_BYTES) // size)
            unseen = [_requests(size, count, next(seeds)) for _ in range(BATCHES)]
            steps.append(Step(f"template and tokens, {name}, unseen", await _timed(tokenization, unseen)))
            turns = [_next_turns(unseen[-1][-1], count, batch) for batch in range(BATCHES)]
            steps.append(Step(f"template and tokens, {name}, prefix seen", await _timed(tokenization, turns)))
        steps.append(
            Step("longest loop callback, 400 KB prompts arrive", await asyncio.to_thread(_longest_callback, tokenization, next(seeds)))
        )
    finally:
        await tokenization.close()
    return steps


async def resident(model_folder: Path) -> int:
    """Resident bytes of a process with one tokenizer, after long prompts of all kinds."""
    command = (sys.executable, "-m", "bench.tokens", str(model_folder))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return int(output)


async def _started(model_folder: Path) -> Tokenization:
    tokenization = Tokenization(bodies.MODEL, LocalTokenizer(LocalTokenizerConfig(path=str(model_folder))))
    await tokenization.start()
    return tokenization


def _requests(size: int, count: int, seed: int) -> list[InferenceRequest]:
    parse = RequestParsers().parse
    return [parse(_HEADERS, body) for body in bodies.chats(size, count, seed)]


def _next_turns(request: InferenceRequest, count: int, batch: int) -> list[InferenceRequest]:
    """The conversation with another question each."""
    assert request.body is not None
    messages = request.body["messages"]
    assert isinstance(messages, list)
    questions = ({"role": "user", "content": f"And what about number {batch}.{i}?"} for i in range(count))
    parse = RequestParsers().parse
    return [parse(_HEADERS, json.dumps({**request.body, "messages": [*messages, question]}).encode()) for question in questions]


async def _timed(tokenization: Tokenization, batches: Sequence[Sequence[InferenceRequest]]) -> Spread:
    """Seconds of CPU of one request, threads included."""
    values = []
    for batch in batches:
        before = time.process_time()
        for request in batch:
            tokens = await awaited(tokenization.tokenize(request))
            assert tokens.state is TokenState.EXACT
        values.append((time.process_time() - before) / len(batch))
    return Spread(tuple(values))


def _longest_callback(tokenization: Tokenization, seed: int) -> Spread:
    """Seconds of CPU of the loop's thread; the loop is asyncio's own, whose callbacks can be timed."""
    requests = _requests(LONG, 2 * BATCHES, seed)

    async def arrive(batch: Sequence[InferenceRequest]) -> None:
        await asyncio.gather(*(_tokens(tokenization, request) for request in batch))

    values = []
    for start in range(0, len(requests), 2):
        with asyncio.Runner(loop_factory=_TimedLoop) as runner:
            runner.run(arrive(requests[start : start + 2]))
            loop = runner.get_loop()
            assert isinstance(loop, _TimedLoop)
            values.append(loop.longest)
    return Spread(tuple(values))


async def _tokens(tokenization: Tokenization, request: InferenceRequest) -> None:
    await awaited(tokenization.tokenize(request))


class _TimedLoop(asyncio.SelectorEventLoop):
    """Times what `call_soon` runs."""

    longest = 0.0

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def,override] # passed on
        return super().call_soon(self._timed, callback, *args, context=context)

    def _timed(self, callback: Callable[..., object], *args: object) -> None:
        before = time.thread_time()
        callback(*args)
        self.longest = max(self.longest, time.thread_time() - before)


async def _fill(model_folder: Path) -> None:
    tokenization = await _started(model_folder)
    for request in _requests(SIZES["220 KB"], MEMORY_PROMPTS, seed=1):
        await awaited(tokenization.tokenize(request))


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


if __name__ == "__main__":
    asyncio.run(_fill(Path(sys.argv[1])))
    sys.stdout.write(str(_resident()))
