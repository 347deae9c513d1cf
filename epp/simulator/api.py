"""The HTTP side of one pod: OpenAI's chat and completions, models, health and metrics (aiohttp).

On the event loop; one `PodApi` per pod, one handler task per request. A client that disconnects cancels its handler,
and the handler's way out aborts what the engine still does for it. Every answer names its pod (epp.names.INFERENCE_POD)
and echoes X-Request-Id.
"""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import count

from aiohttp import web

from epp import names
from epp.simulator import bodies
from epp.simulator.bodies import Ask
from epp.simulator.dev_api import ALWAYS_ANSWERED
from epp.simulator.engine import Output
from epp.simulator.errors import ApiError
from epp.simulator.model import PlannedAnswer, ServedModel
from epp.simulator.pod import Inbox, Pod
from epp.simulator.publisher import HIGH_WATER_MARK
from epp.simulator.replies import ChatReply, CompletionReply, Reply, Usage

# A pod takes what a gateway lets through; the picker's own limit is 64 MiB.
MAX_BODY_BYTES = 256 << 20

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PodApi:
    """The routes of one pod."""

    def __init__(self, pod: Pod, model: ServedModel) -> None:
        self._pod = pod
        self._model = model
        self._started_at = int(time.time())
        self._numbers = count()

    def application(self) -> web.Application:
        """The application to serve on the pod's port."""
        app = web.Application(middlewares=[_errors_as_json, self._hang], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(self._name_the_pod)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_get("/kv_event_sources", self._kv_event_sources)
        return app

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, bodies.chat(await _read(http)), ChatReply, "chatcmpl")

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, bodies.completion(await _read(http)), CompletionReply, "cmpl")

    async def _models(self, http: web.Request) -> web.Response:
        entry = {"object": "model", "created": self._started_at, "owned_by": "epp", "max_model_len": self._model.max_model_len}
        base = {"id": self._model.name, **entry, "parent": None}
        adapters = [{"id": name, **entry, "parent": self._model.name} for name in self._model.loras]
        return web.json_response({"object": "list", "data": [base, *adapters]})

    async def _metrics(self, http: web.Request) -> web.Response:
        page = self._pod.metrics.render(self._pod.engine)
        return web.Response(body=page.encode(), headers={"Content-Type": METRICS_TYPE})

    async def _health(self, http: web.Request) -> web.Response:
        return web.Response()

    async def _kv_event_sources(self, http: web.Request) -> web.Response:
        """The publisher's configuration by data-parallel rank, of which there is one."""
        config, endpoint = self._pod.publisher.config, self._pod.endpoint
        source = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": config.connect or f"tcp://*:{endpoint.events_port}",
            "replay_endpoint": f"tcp://*:{endpoint.replay_port}",
            "buffer_steps": config.buffer_steps,
            "hwm": HIGH_WATER_MARK,
            "max_queue_size": HIGH_WATER_MARK,
            "topic": self._pod.publisher.topic,
        }
        return web.json_response({"0": source})

    async def _generate(self, http: web.Request, ask: Ask, form: type[Reply], prefix: str) -> web.StreamResponse:
        id_ = f"{prefix}-{http.headers.get(names.REQUEST_ID) or f'{self._pod.name}-{next(self._numbers)}'}"
        planned = await self._model.plan(ask, id_, self._pod.faults.faults.tokens)
        reply = form(id_, ask.model, int(time.time()))
        requests = [answer.request for answer in planned]
        inbox = Inbox()
        self._pod.submit(requests, [answer.finish_reason for answer in planned], inbox)
        try:
            if ask.stream:
                return await self._stream(http, ask, reply, planned, inbox)
            return await self._whole(reply, planned, inbox)
        finally:
            self._pod.abort(requests)

    async def _whole(self, reply: Reply, planned: list[PlannedAnswer], inbox: Inbox) -> web.Response:
        await inbox.take()
        text_of = self._model.writer.text
        choices = [("".join(map(text_of, answer.request.said)), _finish_reason(answer)) for answer in planned]
        return web.json_response(reply.whole(choices, _usage(planned)))

    async def _stream(self, http: web.Request, ask: Ask, reply: Reply, planned: list[PlannedAnswer], inbox: Inbox) -> web.StreamResponse:
        """Headers go out at once, then one event per token as the engine says it."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})
        await response.prepare(http)
        places = {answer.request: index for index, answer in enumerate(planned)}
        while outputs := await inbox.take(at_least=1):
            events = [self._event(reply, places[output.request], output, planned) for output in outputs]
            await response.write(b"".join(events))
        for index, answer in enumerate(planned):
            if answer.request.is_unfinished:
                await response.write(reply.token(index, "", _finish_reason(answer)))
        await response.write(reply.closing(_usage(planned) if ask.include_usage else None))
        await response.write_eof()
        return response

    def _event(self, reply: Reply, index: int, output: Output, planned: list[PlannedAnswer]) -> bytes:
        reason = planned[index].finish_reason if output.is_last else None
        event = reply.token(index, self._model.writer.text(output.token), reason)
        return reply.opening(index) + event if output.is_first else event

    @web.middleware
    async def _hang(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A pod that hangs answers nobody, until it goes on."""
        if request.path not in ALWAYS_ANSWERED:
            await self._pod.flows.wait()
        return await handler(request)

    async def _name_the_pod(self, http: web.Request, response: web.StreamResponse) -> None:
        response.headers[names.INFERENCE_POD] = self._pod.name
        request_id = http.headers.get(names.REQUEST_ID)
        if request_id is not None:
            response.headers[names.REQUEST_ID] = request_id


def _usage(planned: list[PlannedAnswer]) -> Usage:
    requests = [answer.request for answer in planned]
    return Usage(
        prompt_tokens=sum(len(request.prompt) for request in requests),
        cached_tokens=sum(request.cached_tokens for request in requests),
        completion_tokens=sum(len(request.said) for request in requests),
    )


def _finish_reason(answer: PlannedAnswer) -> str:
    return "abort" if answer.request.is_unfinished else answer.finish_reason


async def _read(http: web.Request) -> Mapping[str, object]:
    """The body as a JSON object, keys in the client's order, however it was framed."""
    try:
        body = json.loads(await http.read())
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    return body


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals of ours and of aiohttp (unknown path, wrong method, too large) in OpenAI's form."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPClientError as error:
        body = {"error": {"message": error.reason, "type": type(error).__name__, "param": None, "code": error.status}}
        return web.json_response(body, status=error.status)
