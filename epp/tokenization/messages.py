"""From a request's messages to the conversation a chat template sees (spec/kv.md 4.3.5 and 4.3.6).

Content becomes a text or a list of parts, as the template wants it; only the keys vLLM knows reach the template; tool-call
arguments become objects. The client's body is never changed. Pure; called once a chat request.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Final

from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.content_format import ContentFormat
from epp.tokenization.message_schema import Fields, check_typed_parts, validated
from epp.tokenization.template import Message

# The text of each kind of part that is read as text.
_TEXT_KEYS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
_MEDIA: Final = (
    *("image_url", "image_pil", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"),
    *("audio_url", "input_audio", "video_url", "input_image"),
)
# Keys of content parts that belong to some kind of part; all others travel on to the template in the list form.
_PART_KEYS: Final = frozenset(
    (
        *("audio_embeds", "audio_url", "closed", "data", "file", "image_embeds", "image_pil", "image_url", "input_audio", "name"),
        *("prompt_cache_breakpoint", "refusal", "text", "thinking", "type", "uuid", "video_embeds", "video_url"),
    )
)
# Stands in front of a modality; nobody writes it.
_MARK: Final = "\ue000epp medium "
# A line some clients put before the system prompt; it changes with every request, so the engine drops it.
BILLING_HEADER: Final = "x-anthropic-billing-header"


Accepted = tuple[Fields, bool]
"""A message, and whether vLLM reads it by OpenAI's typed form of its role (message_schema)."""


def conversation(messages: Sequence[Accepted], content_format: ContentFormat, *, media: bool = False) -> list[Message]:
    """The messages as the template sees them.

    `media`: they may be among the parts, if content comes as a list. Raises NoTokensError for media otherwise, and for what the engine
    refuses.
    """
    if not messages:
        raise refused("messages must not be empty")
    seen = [_message(message, typed, content_format) for message, typed in (_marked(messages) if media else messages)]
    return [_with_media(message) for message in seen] if media else seen


def _marked(messages: Sequence[Accepted]) -> list[Accepted]:
    """The messages with a text in place of each medium that tells its modality."""
    return [
        (
            {**message, "content": [{"type": "text", "text": _MARK + _modality(part)} if _is_medium(part) else part for part in content]}
            if isinstance(content := message.get("content"), list)
            else message,
            typed,
        )
        for message, typed in messages
    ]


def _with_media(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        {"type": part["text"][len(_MARK) :]} if isinstance(part.get("text"), str) and part["text"].startswith(_MARK) else part
        for part in content
    ]
    return {**message, "content": parts}


def _modality(part: Fields) -> str:
    """What a template calls the medium."""
    key = next((key for key in _MEDIA if key in part or part.get("type") == key), "image")
    return next(modality for modality in ("image", "audio", "video", "prompt_embeds") if modality in key)


def without_media(messages: Sequence[Accepted], stand_in: str) -> list[Accepted]:
    """The messages with a text in place of media, in front of what else their message says: that is where the engine puts them first."""
    return [(_without_media(message, stand_in), typed) for message, typed in messages]


def _without_media(message: Fields, stand_in: str) -> Fields:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [part for part in content if not _is_medium(part)]
    if len(texts) == len(content):
        return message
    return {**message, "content": [{"type": "text", "text": stand_in}, *texts]}


def check_messages(messages: object) -> list[Accepted]:
    """What the engine checks of messages even where it does not render them. Raises NoTokensError where it refuses."""
    if not isinstance(messages, list):
        raise refused("messages must be a list")
    return [validated(message) for message in messages]


def has_media(messages: object) -> bool:
    """Whether any content part is something other than text (it then makes the engine render the messages; spec/kv.md 4.5)."""
    return any(
        _is_medium(part)
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _is_medium(part: object) -> bool:
    return isinstance(part, dict) and (any(key in part for key in _MEDIA) or not _is_text_kind(part.get("type", "text")))


def _is_text_kind(kind: object) -> bool:
    return isinstance(kind, str) and (kind in _TEXT_KEYS or kind == "tool_reference")


def _message(message: Fields, typed: bool, content_format: ContentFormat) -> Message:  # noqa: FBT001 - half of a pair
    role, content = str(message["role"]), message.get("content")
    if typed:
        check_typed_parts(content, role)
    result: Message = {"role": role, "content": _content(content, role == "system", content_format)}
    if role == "assistant":
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            result["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        if (reasoning := message.get("reasoning")) is not None:
            result["reasoning"] = result["reasoning_content"] = reasoning
    elif role == "tool":
        if "tool_call_id" in message:
            result["tool_call_id"] = message["tool_call_id"]
        result["content"] = _tool_content(result["content"])
    for key in ("name", "task"):
        if isinstance(message.get(key), str):
            result[key] = message[key]
    if role == "developer":
        result["tools"] = message.get("tools")
    return result


def _content(content: object, is_system: bool, content_format: ContentFormat) -> object:  # noqa: FBT001 - read where it is called
    if isinstance(content, str) and content_format == "string" and not (is_system and content.startswith(BILLING_HEADER)):
        return content
    parts: Iterable[object] = (
        [{"type": "text", "text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    )
    if is_system:
        parts = _without_billing_header(parts)
    if content_format == "openai":
        return [read for part in parts if (read := _listed(part))]
    texts = [text for part in parts if (text := _text(part))]
    if not all(isinstance(text, str) for text in texts):
        raise refused("a content part has a text that is no string")
    return "\n".join(map(str, texts))


def _text(part: object) -> object:
    """The text of a part; None for a part that is skipped."""
    return part if isinstance(part, str) else _read(part)[1]


def _listed(part: object) -> dict[str, object] | None:
    """A part as templates of the list form see it; None for a part that is skipped."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind, content = _read(part)
    if kind == "tool_reference":
        return {"type": "tool_reference", "name": content}
    if content is None and kind in ("text", "refusal"):
        return None
    assert isinstance(part, dict)
    return {"type": "text", "text": content} | {key: value for key, value in part.items() if key not in _PART_KEYS}


def _read(part: object) -> tuple[str, object]:
    """Kind and text of a part that is an object. Raises NoTokensError for media and for unknown kinds."""
    assert isinstance(part, dict)
    kind, uuid = part.get("type"), part.get("uuid")
    if isinstance(kind, str) and uuid is None:
        if kind in _TEXT_KEYS:
            return kind, part.get(_TEXT_KEYS[kind])
        if kind == "tool_reference":
            return kind, part.get("name")
        if kind in _MEDIA:
            raise NoTokensError(Reason.MULTIMODAL, f"a content part of type {kind}")
        raise refused(f"unsupported chat content part type {kind!r}")
    if kind is None or uuid is not None:
        if medium := next((key for key in _MEDIA if key in part), None):
            raise NoTokensError(Reason.MULTIMODAL, f"a content part with {medium}")
        if "tool_reference" in part:
            return "tool_reference", part.get("name")
        raise refused("a content part without a type")
    raise refused("the type of a content part must be a string")


def _without_billing_header(parts: Iterable[object]) -> Iterable[object]:
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not (isinstance(text, str) and text.startswith(BILLING_HEADER)):
            yield part
        elif rest := text.partition("\n")[2]:
            yield rest if isinstance(part, str) else {**part, "text": rest} if isinstance(part, dict) else part


def _tool_content(content: object) -> object:
    """Tool results are texts for most templates: a list of nothing but text becomes one."""
    if not isinstance(content, list) or any(part.get("type") != "text" for part in content):
        return content
    texts = [part.get("text", "") for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise refused("a content part has a text that is no string")
    return "\n".join(texts)


def _with_parsed_arguments(call: Fields) -> dict[str, object]:
    """The call with its arguments as an object; what is no JSON object counts as empty."""
    function = call["function"]
    assert isinstance(function, dict)
    arguments: object = None
    if text := function["arguments"]:
        try:
            arguments = json.loads(text)
        except json.JSONDecodeError:
            pass
        except ValueError as error:
            raise refused(f"tool call arguments: {error}") from None
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def without_developer_role(messages: Sequence[Message]) -> Sequence[Message]:
    """For a template that does not know the developer role: developers speak as the system, and all system texts are one, in front."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    converted = [
        {key: value for key, value in message.items() if key != "tools"} | {"role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]
    systems = [message for message in converted if message["role"] == "system"]
    texts = [text for message in systems if (text := _system_text(message["content"]))]
    if len(systems) == 1 and converted[0]["role"] == "system":
        return converted
    return [{"role": "system", "content": "\n\n".join(texts)}, *(message for message in converted if message["role"] != "system")]


def _system_text(content: object) -> str:
    if isinstance(content, list):
        texts = [part["text"] for part in content if "text" in part]
        if not all(isinstance(text, str) for text in texts):
            raise refused("a content part has a text that is no string")
        return "\n".join(texts)
    return str(content)
