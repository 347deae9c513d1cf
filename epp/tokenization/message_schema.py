"""Which chat messages vLLM accepts, and the key order it gives to what is nested in them (spec/kv.md 4.3.1).

vLLM validates a message against a union: the *typed* forms of OpenAI, one a role, and a *free* form for any role. Both
may fit; then the one that recognises more fields wins, and the typed one on a draw. It matters for two reasons:

1. Free content parts may be of any kind, typed ones only of the kinds OpenAI allows for the role; and they are looked
   at later, so what is no such part is refused although the free form would have taken it.
2. Tool calls and a developer's tools come out in schema order, their unknown keys last, in the client's order.

Probed against vLLM 0.32. Pure; called once a message by epp.tokenization.messages.
"""

from collections.abc import Callable, Mapping
from typing import Final

from epp.tokenization.absent import refused
from epp.tokenization.lax import as_bool

Fields = Mapping[str, object]
Check = Callable[[object], bool]


def _text(value: object) -> bool:
    return isinstance(value, str)


def _text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _content(value: object) -> bool:
    return isinstance(value, str | list | dict)


def _content_or_null(value: object) -> bool:
    return value is None or isinstance(value, str | list | dict)


def _function_call(value: object) -> bool:
    return value is None or (isinstance(value, dict) and _text(value.get("name")) and _text(value.get("arguments")))


def _audio(value: object) -> bool:
    return value is None or (isinstance(value, dict) and _text(value.get("id")))


# Typed forms: (required fields, optional fields) by role; `role` itself is in each.
_TYPED: Final[Mapping[str, tuple[Mapping[str, Check], Mapping[str, Check]]]] = {
    "developer": ({"content": _content}, {"name": _text}),
    "system": ({"content": _content}, {"name": _text}),
    "user": ({"content": _content}, {"name": _text}),
    "tool": ({"content": _content, "tool_call_id": _text}, {}),
    "function": ({"content": _text_or_null, "name": _text}, {}),
    "assistant": (
        {},
        {
            "audio": _audio,
            "content": _content_or_null,
            "function_call": _function_call,
            "name": _text,
            "refusal": _text_or_null,
            "tool_calls": lambda value: isinstance(value, list),
        },
    ),
}

# Kinds of content parts a typed message may hold, besides media: the key of the text by the type of the part.
_TYPED_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "developer": ("text",),
    "system": ("text",),
    "user": ("text",),
    "tool": ("text",),
    "assistant": ("text", "refusal"),
}
_TYPED_MEDIA: Final = frozenset(("image_url", "input_audio"))


def validated(message: object) -> tuple[Fields, bool]:
    """The message with nested dictionaries in schema order, and whether its typed form won.

    Raises NoTokensError where the engine refuses it. Parts of a typed message are still to be checked (`check_typed_parts`).
    """
    if not isinstance(message, dict) or not isinstance(role := message.get("role"), str):
        raise refused("each message must be an object with a role")
    content = message.get("content")
    if isinstance(content, str):
        # Nearly every message, with nothing nested.
        if role in ("user", "system") and isinstance(message.get("name", ""), str) and "tool_calls" not in message:
            return message, True
        if role == "assistant" and len(message) == 2:
            return message, True
    message = _normalized(message)
    typed, free = _typed_score(message, role), _free_score(message)
    if typed < 0 and free < 0:
        raise refused(f"a message of role {role!r} has a field of the wrong type")
    if typed < free and role == "developer" and isinstance(tools := message.get("tools"), list):
        message["tools"] = [_ordered_tool(tool) for tool in tools]
    if role == "assistant" and isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [_ordered_tool_call(call) for call in calls]
    return message, typed >= free


def _normalized(message: Fields) -> dict[str, object]:
    """`reasoning_content` renamed, `tool_calls` a list."""
    message = dict(message)
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        if not isinstance(calls, str | dict):
            raise refused("tool_calls must be a list")
        message["tool_calls"] = list(calls)
    older = message.pop("reasoning_content", None)
    if older is not None and message.get("reasoning") is None:
        message["reasoning"] = older
    return message


def _typed_score(message: Fields, role: str) -> int:
    """Fields the typed form of the role recognises; -1 where it does not fit."""
    if role not in _TYPED:
        return -1
    required, optional = _TYPED[role]
    score = 1
    for name, check in required.items():
        if name not in message or not check(message[name]):
            return -1
        score += 1
    for name, check in optional.items():
        if name in message:
            if not check(message[name]):
                return -1
            score += 1
    # Nested objects count their own fields.
    score += 2 if isinstance(message.get("function_call"), dict) and role == "assistant" else 0
    score += 1 if isinstance(message.get("audio"), dict) and role == "assistant" else 0
    return score


def _free_score(message: Fields) -> int:
    """Fields the free form recognises, those of nested parts and calls included; -1 where it does not fit."""
    score = 1
    for name, check in (("name", _text), ("tool_call_id", _text_or_null), ("reasoning", _text_or_null), ("task", _text_or_null)):
        if name in message:
            if not check(message[name]):
                return -1
            score += 1
    for name, member_score in (("content", _part_score), ("tool_calls", _tool_call_score), ("tools", _tool_score)):
        if name not in message:
            continue
        value = message[name]
        if isinstance(value, list):
            scores = [member_score(member) for member in value]
            if -1 in scores:
                return -1
            score += sum(scores)
        elif not (isinstance(value, str) if name == "content" else value is None):
            return -1
        score += 1
    return score


def _part_score(part: object) -> int:
    """Fields the best fitting kind of part recognises; any object fits some kind."""
    if isinstance(part, str):
        return 0
    if not isinstance(part, dict):
        return -1
    kind = part.get("type")
    if kind in ("text", "refusal", "thinking") and isinstance(part.get(kind), str):
        if kind != "thinking" or "closed" not in part:
            return 2
        if as_bool(part["closed"]) is not None:
            return 3
    if kind == "tool_reference" and isinstance(part.get("name", ""), str):
        return 1 + ("name" in part)
    media = sum(
        key in part for key in ("image_url", "audio_url", "video_url", "input_audio", "image_embeds", "audio_embeds", "video_embeds")
    )
    return media + ("uuid" in part and _text_or_null(part["uuid"]))


def _tool_call_score(call: object) -> int:
    return 5 if _is_function_call(call) else -1


def _is_function_call(call: object) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("id"), str) or call.get("type") != "function":
        return False
    function = call.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str) and isinstance(function.get("arguments"), str)


def _tool_score(tool: object) -> int:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function := tool.get("function"), dict):
        return -1
    fits = (
        isinstance(function.get("name"), str)
        and isinstance(function.get("description", ""), str)
        and isinstance(function.get("parameters", {}), dict)
        and (function.get("strict") is None or as_bool(function["strict"]) is not None)
    )
    return 2 + sum(key in function for key in ("name", "description", "parameters", "strict")) if fits else -1


def check_typed_parts(content: object, role: str) -> None:
    """Raises NoTokensError for a part of a typed message that OpenAI does not allow for the role; the engine looks when it reads them."""
    if isinstance(content, dict) and content:
        raise refused("message content must be a string or a list")
    if not isinstance(content, list):
        return
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise refused(f"a message of role {role!r} has a content part without a type")
        if role == "user" and kind in _TYPED_MEDIA:
            continue
        if kind not in _TYPED_PARTS.get(role, ()) or not isinstance(part.get(kind), str):
            raise refused(f"a message of role {role!r} has a content part of type {kind!r}, or one without its text")


def _ordered_tool_call(call: object) -> Fields:
    """{id, function: {arguments, name, ...}, type, ...}."""
    if not _is_function_call(call):
        raise refused("assistant tool_calls must be function calls with id, type, name and arguments")
    assert isinstance(call, dict)
    return _ordered({**call, "function": _ordered(call["function"], ("arguments", "name"))}, ("id", "function", "type"))


def _ordered_tool(tool: object) -> Fields:
    """{function: {name, description, parameters, strict, ...}, type, ...}, as far as the client gave them."""
    assert isinstance(tool, dict)
    function = tool["function"]
    if function.get("strict") is not None:
        function = {**function, "strict": as_bool(function["strict"])}
    return _ordered({**tool, "function": _ordered(function, ("name", "description", "parameters", "strict"))}, ("function", "type"))


def _ordered(fields: Fields, first: tuple[str, ...]) -> dict[str, object]:
    """The same fields, those of the schema first."""
    return {key: fields[key] for key in first if key in fields} | dict(fields)
