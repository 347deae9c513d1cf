"""Token ids from vLLM itself: its render endpoints, or its tokenize endpoint (spec/kv.md 4.8, 4.9, spec/plugins.md 8.3).

The request's body goes there with the model's own name in it; whatever goes wrong costs the request its tokens, never more than the
timeout. Prompts that are token ids already go nowhere. Runs on the event loop; one HTTP session, owned here.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Final, Literal, TypeGuard, TypeVar

import aiohttp
import msgspec

from epp.domain import Api, InferenceRequest
from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.backend import Prompts
from epp.tokenization.flight import SingleFlight
from epp.tokenization.lax import object_field
from epp.tokenization.media import Features, features_of
from epp.tokenization.tokenize_bodies import tokenize_bodies

_log = logging.getLogger(__name__)

Mode = Literal["render", "tokenize", "auto"]
T = TypeVar("T")

_PATHS: Final = {
    Api.CHAT: "/v1/chat/completions/render",
    Api.COMPLETIONS: "/v1/completions/render",
    Api.RESPONSES: "/v1/responses/render",
    Api.MESSAGES: "/v1/messages/render",
}
# What a server without render endpoints answers: they are switched off (spec/kv.md 4.9), or older than it.
_NO_RENDERING: Final = (403, 404, 405)
# With mode auto, such a server is asked again after this time: it may have been replaced.
_ASK_AGAIN_S: Final = 60.0


class _Rendered(msgspec.Struct):
    token_ids: list[int]
    features: Features | None = None


class _Tokenized(msgspec.Struct):
    tokens: list[int]


_one = msgspec.json.Decoder(_Rendered)
_many = msgspec.json.Decoder(list[_Rendered])
_tokenized = msgspec.json.Decoder(_Tokenized)


class _NoRenderingError(NoTokensError):
    """The server has no render endpoints."""


class RenderBackend:
    """One vLLM server that is asked for token ids."""

    lora_modules: frozenset[str] = frozenset()

    def __init__(
        self,
        url: str,
        model_name: str,
        timeout_s: float = 5.0,
        parts_timeout_s: float = 30.0,
        mode: Mode = "render",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` without path, `model_name` as the server calls the model, `timeout_s` for the whole exchange.

        `parts_timeout_s` instead where a message has content parts: they may be media, which the server has to fetch. `mode`: which
        endpoint; auto: /tokenize while there is no rendering.
        """
        self._url = url.rstrip("/")
        self._model_name = model_name
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._parts_timeout = aiohttp.ClientTimeout(total=parts_timeout_s)
        self._mode = mode
        self._now = now
        self._no_rendering_until = float("-inf")
        self._flight = SingleFlight()
        self._session: aiohttp.ClientSession | None = None

    async def start(self, executor: Executor | None) -> None:
        """Open the session; the server may come up later."""
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    def prompts(self, request: InferenceRequest) -> Prompts | Awaitable[Prompts]:
        """Ask the server, once for identical requests. Raises NoTokensError where it is slow, down, refuses, or answers something else."""
        assert request.body is not None, "Tokenization asks only about readable bodies"
        if (given := _given(request.api, request.body)) is not None:
            return given
        if request.api not in _PATHS:
            raise NoTokensError(Reason.OPAQUE, f"no endpoint renders {request.path}")
        # Hashes and places of media are all that is wanted, not their pixels (spec/kv.md 4.9).
        asked = {"mm_payload": "none"} if _has_parts(request.body) else {}
        body = msgspec.json.encode({**request.body, "model": self._model_name, **asked})
        return self._flight.run((request.api, body), lambda: self._ask(request, body))

    async def _ask(self, request: InferenceRequest, body: bytes) -> Prompts:
        assert request.body is not None
        within = self._parts_timeout if _has_parts(request.body) else self._timeout
        if self._mode == "tokenize" or (self._mode == "auto" and self._now() < self._no_rendering_until):
            return await self._tokenize(request, within)
        try:
            return await self._render(request.api, body, within)
        except _NoRenderingError as error:
            if self._mode != "auto":
                raise
            self._no_rendering_until = self._now() + _ASK_AGAIN_S
            _log.warning("%s does not render (%s): asking its /tokenize, rendering again in %.0f s", self._url, error.detail, _ASK_AGAIN_S)
        return await self._tokenize(request, within)

    async def _render(self, api: Api, body: bytes, within: aiohttp.ClientTimeout) -> Prompts:
        answer = await self._post(_PATHS[api], body, within)
        rendered = _decoded(answer, _many.decode) if api is Api.COMPLETIONS else [_decoded(answer, _one.decode)]
        try:
            media = [prompt.features.spans(len(prompt.token_ids)) if prompt.features else [] for prompt in rendered]
        except NoTokensError as error:
            raise NoTokensError(Reason.MULTIMODAL, f"the rendered prompt holds media: {error.detail}") from None
        return Prompts([prompt.token_ids for prompt in rendered], media=media if any(media) else ())

    async def _tokenize(self, request: InferenceRequest, within: aiohttp.ClientTimeout) -> Prompts:
        assert request.body is not None
        bodies = tokenize_bodies(request.api, request.body, self._model_name)
        answers = [await self._post("/tokenize", msgspec.json.encode(body), within) for body in bodies]
        return Prompts([_decoded(answer, _tokenized.decode).tokens for answer in answers])

    async def _post(self, path: str, body: bytes, within: aiohttp.ClientTimeout) -> bytes:
        assert self._session is not None, "start() comes first"
        headers = {"content-type": "application/json"}
        try:
            async with self._session.post(self._url + path, data=body, headers=headers, timeout=within) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoTokensError(Reason.RENDER_UNAVAILABLE, f"{type(error).__name__}: {error}") from None
        if response.status == 400:
            raise refused(answer[:500].decode(errors="replace"))
        if response.status in _NO_RENDERING:
            raise _NoRenderingError(Reason.RENDER_UNAVAILABLE, f"status {response.status}")
        if response.status != 200:
            raise NoTokensError(Reason.RENDER_UNAVAILABLE, f"status {response.status}")
        return answer


def _decoded(answer: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NoTokensError(Reason.RENDER_UNAVAILABLE, f"an answer that is no rendering: {error}") from None


def _given(api: Api, body: Mapping[str, object]) -> Prompts | None:
    """The prompts of a request that consists of ids; None where the server has to look. Raises NoTokensError."""
    if api is Api.GENERATE:
        if body.get("content_parts"):
            raise NoTokensError(Reason.MULTIMODAL, "the engine expands content_parts to tokens nobody else knows")
        ids, features = body.get("token_ids"), object_field(body, "features")
        if not _are_ids(ids):
            raise refused("token_ids must be a list of ids that is not empty")
        return Prompts([ids], media=[features_of(features).spans(len(ids))] if features else ())
    if api is Api.COMPLETIONS and not any(body.get(key) for key in ("truncate_prompt_tokens", "prompt_embeds", "suffix")):
        prompt = body.get("prompt")
        given = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], list) else [prompt]
        lists = [ids for ids in given if _are_ids(ids)]
        return Prompts(lists) if len(lists) == len(given) else None
    return None


def _are_ids(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(member) is int and 0 <= member < 1 << 32 for member in value)


def _has_parts(body: Mapping[str, object]) -> bool:
    messages = body.get("messages", body.get("input"))
    return isinstance(messages, list) and any(
        isinstance(message, dict) and isinstance(message.get("content"), list) for message in messages
    )
