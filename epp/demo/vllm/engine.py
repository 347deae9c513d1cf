"""One real vLLM engine, over its HTTP port: empty its cache, wait until it has counted, read what it counted.

Talks to the engine directly, past Envoy and epp, because it is the witness of both. Knows nothing of processes. Used by
`session` on its event loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec

from epp import names
from epp.demo.fleet import HOST, Pod
from epp.demo.processes import DemoError
from epp.demo.vllm.counters import Counters, PageError, parse

MODEL = "tiny"
"""The name under which the recipe serves its model."""

# What an engine may need after its last answer, to free the blocks and to publish its counters: some steps.
SETTLE_TIMEOUT_S = 15.0
SETTLE_POLL_S = 0.1

# Long enough to meet what an engine sets up only once, at a long prompt.
LONG_PROMPT = "warm " * 1500
# Shorter than a block, so that nothing of it is kept.
SHORT_PROMPT = "warm " * 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where an engine listens, on `HOST`."""

    http: int
    events: int
    replay: int


class _Reset(msgspec.Struct):
    success: bool


class _Version(msgspec.Struct):
    version: str


class Engine:
    """One engine that serves."""

    def __init__(self, name: str, ports: Ports, session: aiohttp.ClientSession) -> None:
        """`session` bounds the time of each call."""
        self.name = name
        self.ports = ports
        self._session = session

    @property
    def pod(self) -> Pod:
        """As the demo's fleet knows it."""
        return Pod(self.name, f"{HOST}:{self.ports.http}", f"{HOST}:{self.ports.replay}")

    @property
    def endpoint(self) -> dict[str, object]:
        """Its entry in an endpoints file."""
        labels = {names.KV_EVENTS_PORT_LABEL: str(self.ports.events), names.KV_REPLAY_PORT_LABEL: str(self.ports.replay)}
        return {"name": self.name, "address": HOST, "port": str(self.ports.http), "labels": labels}

    async def healthy(self) -> bool:
        """Whether it serves by now."""
        try:
            async with self._session.get(self._url("/health")) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def version(self) -> str:
        """vLLM's version, as it says itself."""
        return msgspec.json.decode(await self._call("GET", "/version"), type=_Version).version

    async def warm_up(self) -> None:
        """Have it answer a long prompt, so that no request pays for what an engine does only once."""
        await self._complete(LONG_PROMPT)

    async def empty(self) -> Counters:
        """Clear its cache; returns the counters from which to count then."""
        before = await self.counters()
        if await _before_long(self._reset) is None:
            raise DemoError(f"{self.name} does not clear its prefix cache: requests still run on it")
        # The event that tells of it leaves the engine with its next step, so there has to be one.
        await self._complete(SHORT_PROMPT)
        return await self.counted(before.requests + 1)

    async def counted(self, requests: int) -> Counters:
        """Its counters once that many requests have ended since its start, or had time enough to."""

        async def settled() -> Counters | None:
            counters = await self.counters()
            return counters if counters.requests >= requests else None

        return await _before_long(settled) or await self.counters()

    async def counters(self) -> Counters:
        """Its counters now; an answer's last token is on its way before the engine counts the request."""
        try:
            return parse((await self._call("GET", "/metrics")).decode())
        except PageError as error:
            raise DemoError(f"{self._url('/metrics')} has {error}: is this vLLM 0.32?") from None

    async def _reset(self) -> bool | None:
        # It refuses while blocks are in use, and an answer that has just ended gives them back one step later.
        return msgspec.json.decode(await self._call("POST", "/reset_prefix_cache"), type=_Reset).success or None

    async def _complete(self, prompt: str) -> None:
        await self._call("POST", "/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 1})

    async def _call(self, method: str, path: str, body: dict[str, object] | None = None) -> bytes:
        try:
            async with self._session.request(method, self._url(path), json=body) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoError(f"{self.name}: {method} {self._url(path)}: {str(error) or 'no answer in time'}") from None
        if answer.status != 200:
            raise DemoError(f"{self.name}: {method} {self._url(path)}: status {answer.status}: {content[:200].decode(errors='replace')}")
        return content

    def _url(self, path: str) -> str:
        return f"http://{HOST}:{self.ports.http}{path}"


async def _before_long(ask: Callable[[], Awaitable[T | None]]) -> T | None:
    """The first answer that is not None; None where there is none within the time an engine needs to settle."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        answer = await ask()
        if answer is not None or time.monotonic() > deadline:
            return answer
        await asyncio.sleep(SETTLE_POLL_S)
