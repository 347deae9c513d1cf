"""Token ids from vLLM itself: its render endpoint (spec/kv.md 4.9, spec/plugins.md 8.3).

The request's body goes there with the model's own name in it; whatever goes wrong costs the request its tokens, never more than the
timeout. Runs on the event loop; one HTTP session, owned here.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import aiohttp
import msgspec

from epp.domain import Api, InferenceRequest, TokenIds
from epp.tokenization.absent import NoTokensError, Reason, refused


class _Features(msgspec.Struct):
    mm_hashes: dict[str, object] | None = None


class _Rendered(msgspec.Struct):
    token_ids: list[int]
    features: _Features | None = None


_PATHS = {Api.CHAT: "/v1/chat/completions/render", Api.COMPLETIONS: "/v1/completions/render"}
_chat = msgspec.json.Decoder(_Rendered)
_completions = msgspec.json.Decoder(list[_Rendered])


class RenderBackend:
    """One render server."""

    lora_modules: frozenset[str] = frozenset()

    def __init__(self, url: str, model_name: str, timeout_s: float = 5.0, parts_timeout_s: float = 30.0) -> None:
        """`url` without path, `model_name` as the render server calls the model, `timeout_s` for the whole exchange.

        `parts_timeout_s` instead where a message has content parts: they may be media, which the server has to fetch.
        """
        self._url = url.rstrip("/")
        self._model_name = model_name
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._parts_timeout = aiohttp.ClientTimeout(total=parts_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def start(self, executor: Executor | None) -> None:
        """Open the session; the server may come up later."""
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def prompts(self, request: InferenceRequest) -> Sequence[TokenIds]:
        """Ask the server. Raises NoTokensError where it is slow, down, refuses, or answers something else."""
        assert self._session is not None, "start() comes first"
        assert request.body is not None, "Tokenization asks only about readable bodies"
        body = msgspec.json.encode({**request.body, "model": self._model_name})
        headers = {"content-type": "application/json"}
        timeout = self._parts_timeout if _has_parts(request.body) else self._timeout
        try:
            async with self._session.post(self._url + _PATHS[request.api], data=body, headers=headers, timeout=timeout) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoTokensError(Reason.RENDER_UNAVAILABLE, f"{type(error).__name__}: {error}") from None
        if response.status == 400:
            raise refused(answer[:500].decode(errors="replace"))
        if response.status != 200:
            raise NoTokensError(Reason.RENDER_UNAVAILABLE, f"status {response.status}")
        try:
            rendered = [_chat.decode(answer)] if request.api is Api.CHAT else _completions.decode(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NoTokensError(Reason.RENDER_UNAVAILABLE, f"an answer that is no rendering: {error}") from None
        if any(prompt.features is not None and prompt.features.mm_hashes for prompt in rendered):
            raise NoTokensError(Reason.MULTIMODAL, "the rendered prompt holds media")
        return [prompt.token_ids for prompt in rendered]


def _has_parts(body: Mapping[str, object]) -> bool:
    messages = body.get("messages")
    return isinstance(messages, list) and any(
        isinstance(message, dict) and isinstance(message.get("content"), list) for message in messages
    )
