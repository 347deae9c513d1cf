"""A chat body as the template sees it: vLLM's rules for messages, tools and template arguments (spec/kv.md 4.3).

Pure. Covers templates of the "string" content format: the parts of a message are joined to one text. Not covered,
because no model we simulate needs it: templates that iterate over parts, media, and the renaming of the developer role.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from epp.simulator.errors import ApiError

# Parts of a message that are text, and the key that holds it.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}


@dataclass(slots=True)
class Conversation:
    """What goes into the chat template and the tokenizer."""

    messages: list[dict[str, object]]
    tools: list[dict[str, object]] | None
    template_kwargs: dict[str, object]
    add_special_tokens: bool


def conversation(body: Mapping[str, object]) -> Conversation:
    """Read a chat body. Raises ApiError where vLLM would refuse it."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a non-empty list", param="messages")
    return Conversation(
        messages=[_message(message) for message in messages],
        tools=_tools(body),
        template_kwargs=_template_kwargs(body),
        add_special_tokens=body.get("add_special_tokens") is True,
    )


def _message(message: object) -> dict[str, object]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ApiError("every message must be an object with a role", param="messages")
    role = message["role"]
    result: dict[str, object] = {"role": role, "content": _text(message.get("content"))}
    if role == "assistant":
        _add_assistant_fields(result, message)
    if role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    return result


def _text(content: object) -> str:
    """One text from a string, a list of text parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError("content must be a string or a list of parts", param="messages")
    texts = [_part(part) for part in content]
    return "\n".join(text for text in texts if text)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
        raise ApiError("this model reads text parts only", param="messages")
    text = part.get(_TEXT_PARTS[part["type"]])
    if text is not None and not isinstance(text, str):
        raise ApiError("the text of a part must be a string", param="messages")
    return text or ""


def _add_assistant_fields(result: dict[str, object], message: Mapping[str, object]) -> None:
    reasoning = message.get("reasoning", message.get("reasoning_content"))
    if reasoning is not None:
        result["reasoning"] = result["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if not calls:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls):
        raise ApiError("tool_calls must be a list of function calls", param="messages")
    result["tool_calls"] = [{**call, "function": {**call["function"], "arguments": _arguments(call["function"])}} for call in calls]


def _arguments(function: Mapping[str, object]) -> object:
    """The arguments as an object: clients send them as JSON text, templates want to walk them."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
    return arguments if isinstance(arguments, dict) else {}


def _tools(body: Mapping[str, object]) -> list[dict[str, object]] | None:
    tools = body.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not tools:
        raise ApiError("tools must be a non-empty list", param="tools")
    return [_tool(tool) for tool in tools]


def _tool(tool: object) -> dict[str, object]:
    """vLLM dumps tools from its own model: fixed key order, missing keys as null, unknown keys gone."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError("every tool must be a function with a name", param="tools")
    fields: dict[str, object] = {key: function.get(key) for key in ("name", "description", "parameters")}
    fields |= {key: function[key] for key in ("strict", "defer_loading") if key in function}
    return {"type": "function", "function": fields}


def _template_kwargs(body: Mapping[str, object]) -> dict[str, object]:
    """The request's own arguments, overridden by the fields that have names of their own."""
    given = body.get("chat_template_kwargs")
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ApiError("chat_template_kwargs must be an object", param="chat_template_kwargs")
    if "chat_template" in given or body.get("chat_template") is not None:
        raise ApiError("a chat template in the request is not trusted", param="chat_template")
    add_generation_prompt = body.get("add_generation_prompt", True)
    continue_final_message = body.get("continue_final_message", False)
    if add_generation_prompt and continue_final_message:
        raise ApiError("Cannot set both continue_final_message and add_generation_prompt to True.")
    kwargs = {**given, "add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
    if body.get("documents") is not None:
        kwargs["documents"] = body["documents"]
    effort = body.get("reasoning_effort")
    if effort is not None:
        kwargs["reasoning_effort"] = effort
        kwargs.setdefault("enable_thinking", effort != "none")
    return kwargs
