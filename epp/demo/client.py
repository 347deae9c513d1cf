"""Plays a workload against one address: every conversation a task, every answer streamed, as chat clients do.

Times are the client's: a request is sent when its bytes are handed to the socket, its first token is here when the first
piece of content is. A failed request ends its conversation; the run goes on and reports it. Knows nothing of modes, pods
or pickers beyond the header in which an endpoint says its name. Runs on the caller's event loop.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import aiohttp
import msgspec

from epp import names
from epp.demo.records import Played
from epp.demo.workload import Conversation, Workload

# Far above any healthy answer, far below a person's patience with a demo that hangs.
ANSWER_TIMEOUT_S = 60.0

_DATA = b"data: "
_DONE = b"[DONE]"


class Client:
    """Plays one workload once."""

    def __init__(self, address: str, model: str, label: str, report: Callable[[Sequence[Played]], None]) -> None:
        """`address` is "http://host:port"; `label` begins each request id; `report` is called after each request with all ended so far."""
        self._url = f"{address}/v1/chat/completions"
        self._model = model
        self._label = label
        self._report = report
        self._ended: list[Played] = []

    async def play(self, workload: Workload) -> list[Played]:
        """All requests, in the order they were sent."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        open_conversations = asyncio.Semaphore(workload.at_once)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session, asyncio.TaskGroup() as group:
            for conversation in workload.conversations:
                group.create_task(self._converse(session, conversation, open_conversations))
        return sorted(self._ended, key=lambda request: request.sent)

    async def _converse(self, session: aiohttp.ClientSession, conversation: Conversation, open_conversations: asyncio.Semaphore) -> None:
        await asyncio.sleep(conversation.start_s)
        async with open_conversations:
            await self._take_turns(session, conversation)

    async def _take_turns(self, session: aiohttp.ClientSession, conversation: Conversation) -> None:
        messages = [{"role": "system", "content": conversation.tenant.system_prompt}]
        for number, turn in enumerate(conversation.turns, start=1):
            await asyncio.sleep(turn.think_s)
            messages = [*messages, {"role": "user", "content": turn.text}]
            request = Played(
                request_id=f"{self._label}-{conversation.name}-{number}",
                tenant=conversation.tenant.name,
                conversation=conversation.name,
                turn=number,
                messages=messages,
                sent=time.time(),
            )
            await self._ask(session, request, turn.answer_tokens)
            self._ended.append(request)
            self._report(self._ended)
            if request.error is not None:
                return
            messages = [*messages, {"role": "assistant", "content": request.answer}]

    async def _ask(self, session: aiohttp.ClientSession, request: Played, answer_tokens: int) -> None:
        body = msgspec.json.encode(
            {
                "model": self._model,
                "messages": request.messages,
                "max_tokens": answer_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        headers = {"content-type": "application/json", names.REQUEST_ID: request.request_id}
        request.sent = time.time()
        try:
            async with session.post(self._url, data=body, headers=headers) as response:
                request.status = response.status
                request.pod = response.headers.get(names.INFERENCE_POD, "")
                if response.status == 200:
                    await self._read(response, request)
                else:
                    request.error = f"status {response.status}: {(await response.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            request.error = str(error) or type(error).__name__
        request.ended = time.time()

    async def _read(self, response: aiohttp.ClientResponse, request: Played) -> None:
        """One server-sent event a line. Raises ValueError where an event is no JSON."""
        pieces: list[str] = []
        whole = False
        async for line in response.content:
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == _DONE:
                whole = True
                break
            event = msgspec.json.decode(data, type=_Event)
            for choice in event.choices:
                if choice.delta.content:
                    request.first_token = request.first_token or time.time()
                    pieces.append(choice.delta.content)
            if event.usage is not None:
                request.prompt_tokens = event.usage.prompt_tokens
                request.answer_tokens = event.usage.completion_tokens
                request.cached_tokens = (event.usage.prompt_tokens_details or {}).get("cached_tokens") or 0
        request.answer = "".join(pieces)
        if not whole or request.first_token is None or not request.prompt_tokens:
            request.error = "the answer ended before its end"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: Mapping[str, int | None] | None = None


class _Event(msgspec.Struct):
    choices: Sequence[_Choice] = ()
    usage: _Usage | None = None
