"""What stands in for the tokens of a prompt where nobody knows them: its text, four bytes a token (spec/plugins.md 8.3).

Good for one thing only: requests that begin alike begin alike here too. Never mixed with token ids of engines (spec/kv.md
8.16); read by the approximate prefix producer alone. A picture or film is a name of it, as often as the engine is taken to have
placeholders for it: its bytes, if they are in the body, are hundreds of times as many. Pure; once a request.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from epp.domain import Api, InferenceRequest

TOKEN_BYTES: Final = 4
# By llm-d's defaults: 640 x 360 pixels, 1,024 a token; of a film of 10 s two frames a second.
IMAGE_TOKENS: Final = 225
VIDEO_TOKENS: Final = 20 * IMAGE_TOKENS

_encode = msgspec.json.Encoder().encode


def estimated_prompts(request: InferenceRequest) -> list[bytes]:
    """The prompts of a request, padded to whole tokens; none where its body is not known or has none."""
    body = request.body
    if body is None:
        return []
    match request.api:
        case Api.CHAT | Api.MESSAGES:
            return _whole_tokens([_conversation(body)])
        case Api.RESPONSES:
            return _whole_tokens([_text(body.get("instructions")) + _text(body.get("tools")) + _input(body.get("input"))])
        case Api.COMPLETIONS:
            return _whole_tokens(_completion(body.get("prompt")))
        case _:
            return []


def _conversation(body: Mapping[str, object]) -> bytes:
    """Tools, then role and content of each message."""
    parts = [_text(body.get("tools")), _text(body.get("system"))]
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            parts += (_text(message.get("role")), _content(message.get("content")))
    return b"".join(parts)


def _input(items: object) -> bytes:
    """Of the Responses API: a text, or messages and other items."""
    if not isinstance(items, list):
        return _text(items)
    return b"".join(
        _text(item.get("role")) + _content(item["content"]) if isinstance(item, dict) and "content" in item else _text(item)
        for item in items
    )


def _content(content: object) -> bytes:
    if not isinstance(content, list):
        return _text(content)
    return b"".join(_part(part) if isinstance(part, dict) else _text(part) for part in content)


def _part(part: Mapping[str, object]) -> bytes:
    text = part.get("text")
    if text:
        return _text(text)
    kind = part.get("type")
    if not isinstance(kind, str) or not ("image" in kind or "video" in kind):
        return _text(part)
    name = hash(_encode(part)) & 0xFFFFFFFF
    return name.to_bytes(TOKEN_BYTES, "little") * (VIDEO_TOKENS if "video" in kind else IMAGE_TOKENS)


def _completion(prompt: object) -> list[bytes]:
    """Texts; prompts of token ids are known exactly, and come as such from elsewhere."""
    if isinstance(prompt, str):
        return [_text(prompt)]
    return [_text(one) for one in prompt if isinstance(one, str)] if isinstance(prompt, list) else []


def _text(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    return b"" if value is None else _encode(value)


def _whole_tokens(texts: list[bytes]) -> list[bytes]:
    return [text + bytes(-len(text) % TOKEN_BYTES) for text in texts if text]
