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
from epp.requests import opaque
from epp.requests.body import decode
from epp.requests.chat import CHAT
from epp.requests.completions import COMPLETIONS
from epp.requests.shape import Shape

# Claimed path suffixes by parser type; a type without claims is a fallback.
PARSER_TYPES: Final[Mapping[str, Mapping[str, Shape]]] = {
    "openai-parser": {
        "chat/completions": CHAT,
        "completions": COMPLETIONS,
        "embeddings": opaque.EMBEDDINGS,
        "responses": opaque.RESPONSES,
        "conversations": opaque.CONVERSATIONS,
        "images/generations": opaque.IMAGES,
        "chat/completions/render": opaque.RENDER,
        "completions/render": opaque.RENDER,
    },
    "passthrough-parser": {},
}

DEFAULT_PARSERS: Final = ("openai-parser", "passthrough-parser")


class RequestParsers:
    """The configured parsers of one picker."""

    def __init__(self, parsers: Sequence[str] = DEFAULT_PARSERS) -> None:
        """`parsers`: types in the order of the configuration; none configured means the defaults.

        Raises ConfigError for a type that is not in PARSER_TYPES.
        """
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
        decoded = decode(body)
        fields = decoded.fields
        shape.check(fields)
        model, target = _models(fields, headers)
        if target != model or "model" not in fields:
            fields = {**fields, "model": target}
        stream, salt = fields.get("stream"), fields.get("cache_salt")
        return InferenceRequest(
            api=shape.api,
            path=path,
            model=model,
            body=None if decoded.unreadable else fields,
            size_bytes=len(body),
            stream=stream is True,
            max_tokens=_max_tokens(fields, shape.max_tokens_keys),
            cache_salt=salt if isinstance(salt, str) else None,
            unreadable=decoded.unreadable,
            target_model="" if target == decoded.fields.get("model") else target,
        )

    def _shape(self, path: str) -> Shape | None:
        trimmed = path.rstrip("/")
        for suffix in self._suffixes:
            if trimmed.endswith(suffix):
                return self._shapes[suffix]
        return None


def _path(headers: Mapping[str, str]) -> str:
    """The request path without its query."""
    for name in names.PATH_HEADERS:
        if path := headers.get(name):
            return path.partition("?")[0]
    return names.DEFAULT_PATH


def _models(fields: Mapping[str, object], headers: Mapping[str, str]) -> tuple[str, str]:
    """The model the client names, and the one the model server is to be asked for (spec/protocol.md 2.3.13, steps 2 and 3)."""
    model = fields.get("model")
    if not isinstance(model, str | None):
        raise BadRequestError("model not found in request body")
    rewritten = next((target for name in names.MODEL_REWRITE_HEADERS if (target := headers.get(name))), "")
    if not (model or rewritten):
        raise BadRequestError("model not found in request body")
    return model or rewritten, rewritten or model or ""


def _max_tokens(fields: Mapping[str, object], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
