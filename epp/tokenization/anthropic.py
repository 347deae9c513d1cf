"""POST /v1/messages (Anthropic): what its body says, as a `Chat` (spec/kv.md 4.6).

vLLM turns the request into a chat completion and renders that. Billing headers of clients are dropped from system texts, tool results
become messages of their own in front of what else the user said, thinking becomes reasoning. Where a template wants
the system text first and only there, later system messages move to the front. Pure; called once a request.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.chat import Chat, ChatRenderer, ChatSettings, check_cache_salt
from epp.tokenization.lax import as_int, choice_field, object_field
from epp.tokenization.limits import Limits, limits_of
from epp.tokenization.messages import BILLING_HEADER, check_messages
from epp.tokenization.template import takes_later_systems
from epp.tokenization.tools import check_calls_are_served, dumped_tool

Fields = Mapping[str, object]

_ROLES: Final = ("user", "assistant", "system")
_TOOL_CHANGES: Final = ("tool_addition", "tool_removal")
_BLOCKS: Final = (
    *("text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"),
    *_TOOL_CHANGES,
)
_TEXTS: Final = ("text", "id", "tool_use_id", "name", "tool_name", "thinking", "signature", "data")
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_CHOICES: Final = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
_MIN_BUDGET: Final = 1024


@dataclass(frozen=True, slots=True)
class Manners:
    """What vLLM finds out about a model's template before it turns Anthropic's messages into a chat."""

    systems_first: bool
    """The template wants the system text in front and only there."""
    disabled_effort: str
    """What disabled thinking becomes: "none", or "low" where the template refuses that or makes nothing of it."""


def manners(renderer: ChatRenderer) -> Manners:
    """Try the server's template as vLLM does; called once, at load."""
    return Manners(_wants_systems_first(renderer, None) or _wants_systems_first(renderer, []), _disabled_effort(renderer))


def _wants_systems_first(renderer: ChatRenderer, tools: object) -> bool:
    try:
        template = renderer.template(renderer.settings.own_template, tools)
    except NoTokensError:
        return True
    return not takes_later_systems(template.source)


def _disabled_effort(renderer: ChatRenderer) -> str:
    def rendered(effort: str) -> str | None:
        fields = {"add_generation_prompt": renderer.settings.add_generation_prompt, "reasoning_effort": effort}
        hi: Fields = {"role": "user", "content": "Hi"}
        try:
            return renderer.text(Chat([(hi, True)], None, Limits(None, None, None), fields=fields))
        except NoTokensError:
            return None

    none = rendered("none")
    return "low" if none is None or none in map(rendered, _EFFORTS) else "none"


def read_messages(body: Fields, settings: ChatSettings, manners: Manners) -> Chat:
    """Raises NoTokensError where the engine refuses."""
    check_cache_salt(body.get("cache_salt"))
    messages = _checked(body.get("messages"))
    limit = _max_tokens(body)
    choice = _choice(object_field(body, "tool_choice"))
    tools = _tools(body.get("tools"), messages)
    check_calls_are_served(choice or (None if tools is None else "auto"), settings.auto_tool_choice)
    if choice == "none" and settings.exclude_tools_when_choice_none:
        tools = None
    first = manners.systems_first
    return Chat(
        messages=check_messages([*_system(body.get("system"), messages, merge=first), *_conversation(messages, skip_systems=first)]),
        tools=tools,
        limits=limits_of({}, lambda: limit, settings.max_model_len),
        kwargs=object_field(body, "chat_template_kwargs") or {},
        fields={
            "add_generation_prompt": settings.add_generation_prompt,
            "continue_final_message": False,
            "reasoning_effort": _effort(body, limit, manners.disabled_effort),
        },
        transfer=object_field(body, "kv_transfer_params"),
    )


# --- what is refused --------------------------------------------------------------------------------------------


def _checked(messages: object) -> list[Fields]:
    if not isinstance(messages, list):
        raise refused("messages must be a list")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise refused("each message must be an object with the role user, assistant or system")
        _check_content(message.get("content"), changes_tools=message["role"] == "system")
    return messages


def _check_content(content: object, *, changes_tools: bool) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise refused("content must be a text or a list of blocks")
    for block in content:
        if not _is_block(block):
            raise refused("a content block of an unknown type, or with a field of the wrong type")
        if block["type"] in _TOOL_CHANGES and not (changes_tools and _is_change(block["type"], block.get("tool"))):
            raise refused("a change of tools belongs into a system message and must name its tool")


def _is_block(block: object) -> bool:
    if not isinstance(block, dict) or block.get("type") not in _BLOCKS:
        return False
    content = block.get("content")
    return (
        all(isinstance(block.get(name), str | None) for name in _TEXTS)
        and all(isinstance(block.get(name), dict | None) for name in ("source", "input", "tool"))
        and (isinstance(content, str | None) or (isinstance(content, list) and all(isinstance(part, dict) for part in content)))
    )


def _is_change(kind: object, tool: object) -> bool:
    if not isinstance(tool, dict):
        return False
    if tool.get("type") == "tool_reference":
        return isinstance(tool.get("name"), str)
    return kind == "tool_addition" and tool.get("type") == "tool_definition" and isinstance(tool.get("definition"), dict)


def _max_tokens(body: Fields) -> int:
    limit = as_int(body.get("max_tokens"))
    if limit is None or limit < 1:
        raise refused("max_tokens must be a positive integer")
    return limit


def _choice(choice: Fields | None) -> str | None:
    """tool_choice in the words of chat completions; every forced call counts as "required". None: nothing said."""
    if choice is None:
        return None
    kind = choice.get("type")
    if not isinstance(kind, str) or kind not in _CHOICES or (kind == "tool" and not choice.get("name")):
        raise refused("tool_choice must have the type auto, any, none, or tool with a name")
    return _CHOICES[kind]


def _effort(body: Fields, limit: int, when_disabled: str) -> str | None:
    """reasoning_effort as vLLM derives it from `thinking` and `output_config`."""
    thinking, output = object_field(body, "thinking"), object_field(body, "output_config") or {}
    effort = choice_field(output, "effort", _EFFORTS)
    if thinking is None:
        return effort
    kind = thinking.get("type")
    if kind == "enabled":
        budget = as_int(thinking.get("budget_tokens"))
        computes_elsewhere = (object_field(body, "kv_transfer_params") or {}).get("do_remote_decode")
        if budget is None or budget < _MIN_BUDGET or (budget >= limit and not computes_elsewhere):
            raise refused(f"thinking.budget_tokens must be at least {_MIN_BUDGET} and below max_tokens")
    elif kind not in ("disabled", "adaptive"):
        raise refused("thinking must have the type enabled, disabled or adaptive")
    return when_disabled if kind == "disabled" else effort


# --- system texts -----------------------------------------------------------------------------------------------


def _system(system: object, messages: list[Fields], *, merge: bool) -> Iterator[Fields]:
    """The system message in front, if there is anything to say."""
    texts = []
    if system is not None:
        _check_content(system, changes_tools=False)
        # The header is looked for in blocks only: a system text that is one string stays as it is.
        texts.append(system if isinstance(system, str) else _system_text(system))
    if merge:
        texts += [_system_text(message["content"]) for message in messages if message["role"] == "system"]
    if any(texts):
        yield {"role": "system", "content": "".join(texts)}


def _system_text(content: object) -> str:
    parts = [content] if isinstance(content, str) else [block.get("text") for block in _blocks(content) if block["type"] == "text"]
    return "".join(part for part in parts if isinstance(part, str) and not part.startswith(BILLING_HEADER))


# --- messages ---------------------------------------------------------------------------------------------------


def _conversation(messages: list[Fields], *, skip_systems: bool) -> Iterator[Fields]:
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            if not skip_systems and (text := _system_text(content)):
                yield {"role": "system", "content": text}
        elif isinstance(content, str):
            yield {"role": role, "content": content}
        else:
            yield from _from_blocks(str(role), _blocks(content))


def _from_blocks(role: str, blocks: list[Fields]) -> Iterator[Fields]:
    """Tool results first, then the message itself, unless it is a user's and nothing is left of it."""
    message: dict[str, object] = {"role": role}
    parts: list[Fields] = []
    for block in blocks:
        match block["type"]:
            case "text" if block.get("text"):
                parts.append({"type": "text", "text": block["text"]})
            case "image" if block.get("source"):
                parts.append(_IMAGE)
            case "tool_result" if role == "user":
                yield from _tool_result(block)
            case "tool_result":
                parts.append({"type": "text", "text": f"Tool result: {block.get('content') or ''}"})
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking" and block.get("thinking") is not None]
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    if thoughts:
        message["reasoning"] = "".join(map(str, thoughts))
    if calls:
        message["tool_calls"] = calls
    if parts:
        message["content"] = parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts
    if role != "user" or parts:
        yield message


# The picture itself is of no use here: any stands for all.
_IMAGE: Final = {"type": "image_url", "image_url": {"url": ""}}


def _call(block: Fields) -> Fields:
    if not block.get("id"):
        raise NoTokensError(Reason.UNSUPPORTED, "a tool_use block without an id gets one from the engine's clock")
    function = {"name": block.get("name") or "", "arguments": json.dumps(block.get("input") or {})}
    return {"id": block["id"], "type": "function", "function": function}


def _tool_result(block: Fields) -> Iterator[Fields]:
    call_id, content = block.get("tool_use_id") or "", block.get("content")
    parts = _blocks(content) if isinstance(content, list) else []
    texts = [part.get("text", "") for part in parts if part.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise refused("a tool result has a text that is no string")
    yield {"role": "tool", "tool_call_id": call_id, "content": content if isinstance(content, str) else "\n".join(map(str, texts))}
    if any(part.get("type") == "image" for part in parts):
        yield {"role": "user", "content": [_IMAGE]}
    names = [part.get("tool_name") or part.get("name") for part in parts if part.get("type") == "tool_reference"]
    if any(names):
        yield {"role": "tool", "tool_call_id": call_id, "content": [{"type": "tool_reference", "name": name} for name in names if name]}


# --- tools ------------------------------------------------------------------------------------------------------


def _tools(tools: object, messages: list[Fields]) -> list[Fields] | None:
    """The tools in effect at the end of the conversation, as the template sees them."""
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise refused("tools must be a list of objects")
    changes = [
        block
        for message in messages
        for block in (_blocks(message["content"]) if isinstance(message["content"], list) else ())
        if block["type"] in _TOOL_CHANGES
    ]
    in_effect = _changed(tools or [], changes) if changes else tools
    return None if in_effect is None else [_tool(tool) for tool in in_effect]


def _changed(tools: list[Fields], changes: list[Fields]) -> list[Fields]:
    by_name = {str(tool.get("name")): tool for tool in tools}
    removed: set[str] = set()
    for block in changes:
        change = block["tool"]
        assert isinstance(change, dict)
        definition = change.get("definition") if change["type"] == "tool_definition" else None
        name = str(change["name"] if definition is None else definition.get("name"))
        if definition is not None:
            by_name[name] = definition
        elif name not in by_name:
            raise refused(f"the tool {name!r} is not declared")
        elif block["type"] == "tool_addition":
            by_name[name] = {**by_name[name], "defer_loading": None}
        (removed.add if block["type"] == "tool_removal" else removed.discard)(name)
    return [tool for name, tool in by_name.items() if name not in removed]


def _tool(tool: Fields) -> Fields:
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise refused("a tool needs an input_schema")
    function = {key: tool.get(key) for key in ("name", "description", "strict", "defer_loading")}
    return dumped_tool(
        {"type": "function", "function": {**function, "parameters": schema if "type" in schema else {**schema, "type": "object"}}}
    )


def _blocks(content: object) -> list[Fields]:
    assert isinstance(content, list)
    return content
