"""Asks engines where they publish their KV events: `GET /kv_event_sources` on the port they serve on (spec/kv.md 1.3).

One task an endpoint inside one TaskGroup, over one shared HTTP session. An engine that answers is asked again when its stream
is lost, because one that restarts may publish on another port; one that is not up yet, or publishes nothing, is asked now and
then. Runs on the event loop; `sync` and `ask_again` may be called at any time, also before `run`. What an answer means is decided
in `kv_ports`.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from yarl import URL

from epp.domain import Endpoint, EndpointId
from epp.reporter import Reporter
from epp.sources.kv_ports import Ports, ports

PATH: Final = "/kv_event_sources"
TIMEOUT_S: Final = 2.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 2.0
# An engine without events may be replaced by one that has some, and no stream of it would be lost.
NOTHING_PAUSE_S: Final = 60.0
# At most so many at once: a fleet that is listed is asked in a moment, and not in one.
CONNECTIONS: Final = 64
# A rank's part of an answer is 300 bytes.
MAX_ANSWER_BYTES: Final = 1 << 20

Told = Callable[[Endpoint, Ports | None], None]
"""An endpoint's answer; None: it knows no such question, or does not answer for now."""


@dataclass(slots=True)
class _Asked:
    """One endpoint."""

    endpoint: Endpoint
    again: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class PortAsker:
    """Keeps one questioner per endpoint."""

    def __init__(self, reporter: Reporter, *, scheme: str, tls: ssl.SSLContext | bool, bound: bool) -> None:
        """`scheme` of the engines' HTTP API, http or https; `tls`: how their certificates are judged; `bound`: engines may connect to us."""
        self._reporter = reporter
        self._scheme = scheme
        self._tls = tls
        self._bound = bound
        self._asked: dict[EndpointId, _Asked] = {}
        self._start: Callable[[_Asked], asyncio.Task[None]] | None = None

    def sync(self, endpoints: Sequence[Endpoint]) -> None:
        """Ask exactly these from now on; one that serves elsewhere than before is asked anew."""
        wanted = {endpoint.id: endpoint for endpoint in endpoints}
        for key, asked in tuple(self._asked.items()):
            now = wanted.get(key)
            if now is None or (now.host_port, now.rank) != (asked.endpoint.host_port, asked.endpoint.rank):
                del self._asked[key]
                if asked.task is not None:
                    asked.task.cancel()
            else:
                asked.endpoint = now
        for key, endpoint in wanted.items():
            if key not in self._asked:
                self._asked[key] = _Asked(endpoint)
        self._converge()

    def ask_again(self, endpoint: EndpointId) -> None:
        """Its stream was lost. Nothing where it was not asked."""
        asked = self._asked.get(endpoint)
        if asked is not None:
            asked.again.set()

    async def run(self, told: Told) -> None:
        """Ask, and tell, until cancelled."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self._tls, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
            self._start = lambda asked: group.create_task(self._ask(session, asked, told), name=f"event ports of {asked.endpoint.id}")
            try:
                self._converge()
                await asyncio.Event().wait()
            finally:
                self._start = None

    def _converge(self) -> None:
        if self._start is not None:
            for asked in self._asked.values():
                if asked.task is None:
                    asked.task = self._start(asked)

    async def _ask(self, session: aiohttp.ClientSession, asked: _Asked, told: Told) -> None:
        """Ask one endpoint until cancelled."""
        url = URL(f"{self._scheme}://{asked.endpoint.host_port}{PATH}")
        heard, pause = False, FIRST_PAUSE_S
        while True:
            asked.again.clear()
            try:
                answer = await _fetch(session, url)
            except (aiohttp.ClientError, OSError, TimeoutError):
                # It may come up at any time. What it said before stays true until it says something else.
                if not heard:
                    told(asked.endpoint, None)
                heard = True
                await _wait(asked.again, pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            said = None if answer is None else self._read(answer, asked.endpoint)
            told(asked.endpoint, said)
            heard, pause = True, FIRST_PAUSE_S
            await _wait(asked.again, NOTHING_PAUSE_S if said is not None and not said.events else None)

    def _read(self, answer: bytes, endpoint: Endpoint) -> Ports | None:
        try:
            said = ports(answer, endpoint)
        except ValueError:
            self._reporter.kv_event_error(endpoint.id, "event_sources_answer")
            return None
        if said.connects:
            if not self._bound:
                self._reporter.kv_event_error(endpoint.id, "engine_connects_to_somebody_else")
        elif not said.events:
            self._reporter.kv_event_error(endpoint.id, "engine_publishes_no_events")
        return said


async def _wait(again: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(again.wait(), seconds)


async def _fetch(session: aiohttp.ClientSession, url: URL) -> bytes | None:
    """The answer; None: an engine that knows no such question."""
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            return None
        answer = await response.content.read(MAX_ANSWER_BYTES + 1)
        while len(answer) <= MAX_ANSWER_BYTES and (more := await response.content.read(MAX_ANSWER_BYTES)):
            answer += more
        return answer
