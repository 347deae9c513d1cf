"""POST /v1/responses (OpenAI): what its body says, as a `Chat` (spec/kv.md 4.6).

Several items make one message: a call and its reasoning belong to the assistant's message before them. Items of kinds vLLM does
not know are refused, as it does; what it may accept in a form not imitated here has no tokens. Stored history
(`previous_response_id`) lives in the memory of one server only. Pure; called once a request.
"""

import json
from collections.abc import Mapping
from typing import Final

from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.chat import Chat, ChatSettings, check_cache_salt
from epp.tokenization.chat_completions import EFFORTS
from epp.tokenization.lax import choice_field, int_field, object_field
from epp.tokenization.limits import limits_of
from epp.tokenization.tools import dumped_tool

Fields = Mapping[str, object]

_ROLES: Final = ("user", "assistant", "system", "developer")
_STATUSES: Final = ("in_progress", "completed", "incomplete")
_CALLS: Final = ("function_call", "custom_tool_call")
_CALL_OUTPUTS: Final = ("function_call_output", "custom_tool_call_output")
# The one argument of a tool that takes free text.
_FREE_TEXT: Final = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The freeform text payload for this tool."}},
    "required": ["input"],
    "additionalProperties": False,
}


def read_responses(body: Fields, settings: ChatSettings) -> Chat:
    """Raises NoTokensError where the engine refuses, or knows more than the request says."""
    check_cache_salt(body.get("cache_salt"))
    if body.get("prompt") is not None:
        raise refused("prompt templates are not supported")
    if body.get("previous_response_id") is not None:
        raise NoTokensError(Reason.UNSUPPORTED, "previous_response_id names a history that only one server may have")
    given = body.get("input")
    reasoning = object_field(body, "reasoning") or {}
    truncation = choice_field(body, "truncation", ("auto", "disabled")) if "truncation" in body else "disabled"
    continues = _continues(given)
    return Chat(
        messages=[(message, False) for message in _messages(body.get("instructions"), given)],
        tools=_tools(body, exclude_when_choice_none=settings.exclude_tools_when_choice_none),
        limits=limits_of(
            {} if truncation == "disabled" else {"truncate_prompt_tokens": -1},
            lambda: int_field(body, "max_output_tokens"),
            settings.max_model_len,
        ),
        kwargs=object_field(body, "chat_template_kwargs") or {},
        fields={
            "add_generation_prompt": not continues,
            "continue_final_message": continues,
            "reasoning_effort": choice_field(reasoning, "effort", EFFORTS),
        },
        add_special_tokens=True,
        transfer=object_field(body, "kv_transfer_params"),
    )


def _continues(given: object) -> bool:
    """Whether the last item is an assistant's message that was cut off."""
    if not isinstance(given, list) or not given or not isinstance(last := given[-1], dict):
        return False
    # A message whose content is one text has no status in the API: the engine drops it.
    is_listed = last.get("type", "message") == "message" and isinstance(last.get("content"), list)
    return (is_listed or last.get("type") == "reasoning") and last.get("status") in ("in_progress", "incomplete")


# --- items to messages ------------------------------------------------------------------------------------------


def _messages(instructions: object, given: object) -> list[Fields]:
    if not isinstance(instructions, str | None):
        raise refused("instructions must be a text")
    messages: list[dict[str, object]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise refused("input must be a text or a list of items")
    items: list[dict[str, object]] = []
    for item in given:
        if not isinstance(item, dict):
            raise refused("an input item must be an object")
        _add(item, items)
    return [*messages, *items]


def _add(item: Fields, messages: list[dict[str, object]]) -> None:
    """Append the message of an item, or make the item part of the assistant's message before it."""
    kind = item.get("type", "message")
    if kind in _CALLS:
        call = _call(item)
        if messages and messages[-1]["role"] == "assistant":
            calls = messages[-1].setdefault("tool_calls", [])
            assert isinstance(calls, list)
            calls.append(call)
        else:
            messages.append({"role": "assistant", "tool_calls": [call]})
    elif kind == "reasoning":
        _add_to_assistant("reasoning", _reasoning(item), messages)
    elif kind in _CALL_OUTPUTS:
        call_id = item.get("call_id")
        if not isinstance(call_id, str | None):
            raise refused("the call_id of an output must be a text")
        messages.append({"role": "tool", "content": _checked_content(item.get("output")), "tool_call_id": call_id})
    elif kind == "message" and "role" in item:
        _add_message(item, messages)
    elif "role" in item:
        raise NoTokensError(Reason.UNSUPPORTED, f"an input item of type {kind!r} with a role")
    else:
        raise refused(f"unsupported input item of type {kind!r}")


def _add_message(item: Fields, messages: list[dict[str, object]]) -> None:
    role, content = item["role"], item.get("content")
    if role not in _ROLES:
        raise refused("the role of a message must be user, assistant, system or developer")
    if role != "assistant":
        messages.append({"role": role, "content": _checked_content(content)})
        return
    if isinstance(content, list) and item.get("status", "completed") not in _STATUSES:
        raise refused("the status of a message must be in_progress, completed or incomplete")
    _add_to_assistant("content", content if isinstance(content, str) else _first_text(content), messages)


def _add_to_assistant(key: str, text: str, messages: list[dict[str, object]]) -> None:
    if messages and messages[-1]["role"] == "assistant" and messages[-1].get(key) is None:
        messages[-1][key] = text
    else:
        messages.append({"role": "assistant", key: text})


def _checked_content(content: object) -> object:
    """The content of a message or of a call's output: a text, or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise refused("content must be a text or a list of parts")
    for part in content:
        if part.get("type") == "input_file":
            raise NoTokensError(Reason.MULTIMODAL, "a content part of type input_file")
        if part.get("type") not in ("input_text", "input_image") or not isinstance(part.get("text", ""), str):
            raise refused("a content part must be an input_text, input_image or input_file")
        if part["type"] == "input_text" and "text" not in part:
            raise refused("an input_text needs its text")
    return [{"type": part["type"], **({"text": part["text"]} if part["type"] == "input_text" else {})} for part in content]


def _first_text(content: object) -> str:
    """All the engine keeps of an assistant's parts. They come as its own output, or in the form of input."""
    parts = content if isinstance(content, list) else None
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise refused("the content of an assistant's message must be a text or a list of parts")
    kind = parts[0].get("type")
    if (
        kind not in ("output_text", "input_text")
        or any(part.get("type") != kind for part in parts)
        or not all(isinstance(part.get("text"), str) for part in parts)
    ):
        raise NoTokensError(Reason.UNSUPPORTED, "an assistant's message of other parts than texts")
    return str(parts[0]["text"])


def _call(item: Fields) -> Fields:
    argument = "arguments" if item["type"] == "function_call" else "input"
    call_id, name, text, namespace = item.get("call_id"), item.get("name"), item.get(argument), item.get("namespace")
    if not all(isinstance(value, str) for value in (call_id, name, text)) or not isinstance(namespace, str | None):
        raise refused(f"a call needs the texts call_id, name and {argument}")
    if item["type"] != "function_call":
        return _function_call(call_id, name, json.dumps({"input": text}, ensure_ascii=False))
    return _function_call(call_id, f"{namespace}__{name}" if namespace else name, text)


def _function_call(call_id: object, name: object, arguments: object) -> Fields:
    return {"id": call_id, "function": {"name": name, "arguments": arguments}, "type": "function"}


def _reasoning(item: Fields) -> str:
    """Its text, else its summary; the first part of either is all the engine keeps."""
    if item.get("encrypted_content"):
        raise refused("encrypted reasoning is not supported")
    summary, content = item.get("summary"), item.get("content")
    if not _are_texts(summary, "summary_text") or not (content is None or _are_texts(content, "reasoning_text")):
        raise refused("a reasoning item needs a summary of texts; its content must be texts")
    assert isinstance(summary, list)
    first = next(iter([*(content if isinstance(content, list) else ()), *summary]), None)
    return "" if first is None else str(first["text"])


def _are_texts(parts: object, kind: str) -> bool:
    return isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == kind and isinstance(part.get("text"), str) for part in parts
    )


# --- tools ------------------------------------------------------------------------------------------------------


def _tools(body: Fields, *, exclude_when_choice_none: bool) -> list[Fields] | None:
    """Functions, those of namespaces, and free-text tools, as the template sees them; other kinds are not shown to the model."""
    tools, choice = body.get("tools", []), body.get("tool_choice", "auto")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise refused("tools must be a list of objects")
    if not (isinstance(choice, dict) or choice in ("none", "auto", "required")):
        raise refused("tool_choice must be none, auto, required, or name a tool")
    named = isinstance(choice, dict) and choice.get("type") in ("function", "custom")
    if not tools and (choice == "required" or named):
        raise refused("tool_choice without tools")
    if not tools or (choice == "none" and exclude_when_choice_none):
        return None
    functions = [function for tool in tools for function in _functions(tool)]
    if isinstance(choice, dict) and named:
        _check_named(choice.get("name"), tools)
    return functions


def _functions(tool: Fields) -> list[Fields]:
    match tool.get("type"):
        case "function":
            return [_function(tool, str(tool.get("name")))]
        case "namespace":
            members = tool.get("tools")
            if not isinstance(tool.get("name"), str) or not isinstance(tool.get("description"), str) or not isinstance(members, list):
                raise refused("a namespace needs a name, a description and tools")
            if not all(isinstance(member, dict) and isinstance(member.get("name"), str) for member in members):
                raise refused("a tool of a namespace needs a name")
            return [_function(member, f"{tool['name']}__{member['name']}") for member in members if member.get("type") == "function"]
        case "custom":
            shape = tool.get("format")
            if not isinstance(tool.get("name"), str) or (isinstance(shape, dict) and shape.get("type") == "grammar"):
                raise refused("a custom tool needs a name, and must not have a grammar")
            return [_function({**tool, "parameters": _FREE_TEXT}, str(tool["name"]))]
        case str():
            return []
    raise refused("a tool needs a type")


def _function(tool: Fields, name: str) -> Fields:
    if not isinstance(tool.get("name"), str):
        raise refused("a function needs a name")
    fields = {key: tool[key] for key in ("description", "parameters", "strict", "defer_loading") if key in tool}
    return dumped_tool({"type": "function", "function": {"name": name, **fields}})


def _check_named(name: object, tools: list[Fields]) -> None:
    """The choice must name one tool: by its full name, or by one that is in one namespace only."""
    full: list[object] = []
    local: list[object] = []
    for tool in tools:
        if tool.get("type") == "namespace":
            members = tool.get("tools")
            names = [member.get("name") for member in members if isinstance(member, dict)] if isinstance(members, list) else []
            full += (f"{tool.get('name')}__{member}" for member in names)
            local += names
        else:
            full.append(tool.get("name"))
    if not name or (name not in full and local.count(name) != 1):
        raise refused("tool_choice must name exactly one of the tools")
