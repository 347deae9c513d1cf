"""Which parser reads a request, and what it makes of it.

A parser is chosen by path: the longest claimed suffix wins, whatever the order of the configuration; a parser without claims is
the fallback, and what is configured after it is ignored (spec/protocol.md 2.3.12). Pure; built once, `parse` is called by the
director once a request, and holds no state between calls.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from epp import names
from epp.domain import Api, InferenceRequest
from epp.errors import BadRequestError, ConfigError
from epp.requests import anthropic, grpc, opaque, sglang
from epp.requests.body import decode, decode_outline
from epp.requests.chat import CHAT
from epp.requests.completions import COMPLETIONS
from epp.requests.generate import GENERATE
from epp.requests.responses import RESPONSES
from epp.requests.shape import Shape

# Claimed path suffixes by parser type (spec/protocol.md 2.3.12); a type without claims is a fallback. Those that begin with a slash
# are ours: vLLM's other paths, for which llm-d has no parser.
PARSER_TYPES: Final[Mapping[str, Mapping[str, Shape]]] = {
    "openai-parser": {
        "chat/completions": CHAT,
        "completions": COMPLETIONS,
        "embeddings": opaque.EMBEDDINGS,
        "responses": RESPONSES,
        "conversations": opaque.CONVERSATIONS,
        "images/generations": opaque.IMAGES,
        "chat/completions/render": opaque.RENDER,
        "completions/render": opaque.RENDER,
        "/responses/render": opaque.RENDER,
        "/chat/completions/batch": opaque.NAMED,
        "/score": opaque.NAMED,
        "/rerank": opaque.NAMED,
        "/pooling": opaque.NAMED,
        "/classify": opaque.NAMED,
    },
    "anthropic-parser": {
        "messages": anthropic.MESSAGES,
        "messages/count_tokens": anthropic.COUNT_TOKENS,
        "/messages/render": opaque.RENDER,
    },
    "vllmhttp-parser": {"inference/v1/generate": GENERATE},
    "sglanghttp-parser": {"generate": sglang.GENERATE},
    "vllmgrpc-parser": {
        "vllm.grpc.engine.VllmEngine/Generate": grpc.VLLM_GENERATE,
        "vllm.grpc.engine.VllmEngine/Embed": grpc.VLLM_EMBED,
    },
    "vertexai-parser": {
        "PredictionService/ChatCompletions": grpc.VERTEX_CHAT,
        "PredictionService/StreamRawPredict": grpc.VERTEX_RAW,
        "PredictionService/RawPredict": grpc.VERTEX_RAW,
    },
    "passthrough-parser": {},
}

DEFAULT_PARSERS: Final = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")

# Paths are the client's: so many different ones are remembered with their shapes.
_REMEMBERED_PATHS: Final = 1024


class RequestParsers:
    """The configured parsers of one picker."""

    def __init__(self, parsers: Sequence[str] = DEFAULT_PARSERS, *, whole_bodies: bool = True) -> None:
        """`parsers`: types in the order of the configuration; none configured means the defaults.

        `whole_bodies` False: `InferenceRequest.body` may lack what nothing here looks at, because no plugin does either.

        Raises ConfigError for a type that is not in PARSER_TYPES.
        """
        self._decode = decode if whole_bodies else decode_outline
        self._shapes: dict[str, Shape] = {}
        self._fallback = False
        for parser in parsers or DEFAULT_PARSERS:
            if parser not in PARSER_TYPES:
                raise ConfigError(f"requestHandler.parsers: no parser of type {parser!r}; there are {', '.join(PARSER_TYPES)}")
            if self._fallback:
                break
            self._shapes.update(PARSER_TYPES[parser])
            self._fallback = not PARSER_TYPES[parser]
        self._suffixes = sorted(self._shapes, key=len, reverse=True)
        self._by_path: dict[str, Shape | None] = {}

    def parse(self, headers: Mapping[str, str], body: bytes) -> InferenceRequest:
        """Read one request; header names in lower case.

        Raises BadRequestError with the text of spec/protocol.md 1.5.1, rows 2-9.
        """
        path = _path(headers)
        shape = self._shape(path)
        if shape is None:
            if not self._fallback:
                raise BadRequestError(f"no parser registered matching path suffix for: {path}")
            return InferenceRequest(Api.OPAQUE, path, "", None, len(body))
        try:
            decoded = self._decode(body) if shape.read is None else shape.read(body)
        except BadRequestError:
            if not headers.get("content-type", "").lower().startswith("multipart/"):
                raise
            return InferenceRequest(Api.OPAQUE, path, "", None, len(body))  # a form with files, which no parser reads
        fields = decoded.fields
        shape.check(fields)
        model, target = _models(fields, headers if shape.rewritable else {}, must_be_text=shape.model_is_text)
        rewritten = "" if target == fields.get("model") else target
        if target != model or "model" not in fields:
            fields = {**fields, "model": target}
        stream, salt = fields.get("stream"), fields.get("cache_salt")
        return InferenceRequest(
            api=decoded.api or shape.api,
            path=path,
            model=model,
            body=None if decoded.unreadable else fields,
            size_bytes=len(body),
            stream=stream is True,
            max_tokens=_whole_number(shape.max_tokens(fields)),
            cache_salt=salt if isinstance(salt, str) else None,
            priority=_whole_number(fields.get("priority")),
            unreadable=decoded.unreadable,
            target_model=rewritten,
            answer=shape.answer,
            skip_response=shape.skip_response,
        )

    def _shape(self, path: str) -> Shape | None:
        try:
            return self._by_path[path]
        except KeyError:
            pass
        trimmed = path.rstrip("/")
        shape = next((self._shapes[suffix] for suffix in self._suffixes if trimmed.endswith(suffix)), None)
        if len(self._by_path) < _REMEMBERED_PATHS:
            self._by_path[path] = shape
        return shape


def _path(headers: Mapping[str, str]) -> str:
    """The request path without its query."""
    for name in names.PATH_HEADERS:
        if path := headers.get(name):
            return path.partition("?")[0]
    return names.DEFAULT_PATH


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _models(fields: Mapping[str, object], headers: Mapping[str, str], *, must_be_text: bool) -> tuple[str, str]:
    """The model the client names, and the one the model server is to be asked for (spec/protocol.md 2.3.13, steps 2 and 3).

    Where it names none, or "", vLLM answers as its base model, so the request is routed, with an empty name (row 9 of 1.5.1 is narrower here).
    """
    model = fields.get("model")
    if not isinstance(model, str):
        if model is not None and must_be_text:
            raise BadRequestError("model not found in request body")
        model = ""
    for name in names.MODEL_REWRITE_HEADERS:
        if rewritten := headers.get(name):
            return model or rewritten, rewritten
    return model, model
