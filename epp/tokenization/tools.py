"""The tools of a conversation as the template sees them: dumped by vLLM's models (spec/kv.md 4.3.1).

Missing descriptions and parameters become null and are present; unknown keys are gone; the JSON schema in `parameters`
keeps the client's order. Pure; called once a request with tools.
"""

from collections.abc import Mapping

from epp.tokenization.absent import refused
from epp.tokenization.lax import as_bool

Fields = Mapping[str, object]


def tools_of(body: Fields, *, exclude_when_choice_none: bool, auto_tool_choice: bool | None = None) -> list[Fields] | None:
    """The tools of a chat completion to render; None where there are none. Raises NoTokensError where the engine refuses."""
    tools = body.get("tools")
    if tools is None:
        if body.get("tool_choice") not in (None, "none"):
            raise refused("tool_choice without tools")
        return None
    if not isinstance(tools, list) or not tools:
        raise refused("tools must be a list that is not empty")
    dumped = [dumped_tool(tool) for tool in tools]
    choice = body.get("tool_choice", "auto")
    _check_choice(choice, tools)
    check_calls_are_served(choice, auto_tool_choice)
    return None if choice == "none" and exclude_when_choice_none else dumped


def _check_choice(choice: object, tools: list[Fields]) -> None:
    if choice is None or choice in ("none", "auto", "required"):
        return
    if not isinstance(choice, dict):
        raise refused("tool_choice must be none, auto, required or a named function")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    names = [tool["function"]["name"] for tool in tools if isinstance(tool["function"], dict)]
    if choice.get("type", "function") != "function" or not isinstance(name, str) or names.count(name) != 1:
        raise refused("tool_choice must name exactly one function of the tools")


def check_calls_are_served(choice: object, auto_tool_choice: bool | None) -> None:  # noqa: FBT001 - a setting, passed on
    """Raises NoTokensError where tools may be called, and the engine is known to have no parser for calls."""
    if auto_tool_choice is False and choice not in (None, "none"):
        raise refused("tool_choice needs --enable-auto-tool-choice and --tool-call-parser")


def dumped_tool(tool: object) -> Fields:
    """One tool in the spelling of chat completions as the template sees it. Raises NoTokensError where the engine refuses it.

    {type, function: {name, description, parameters[, strict][, defer_loading]}[, defer_loading]}.
    """
    if not isinstance(tool, dict) or tool.get("type", "function") != "function" or not isinstance(tool.get("function"), dict):
        raise refused("each tool must be an object of type function with a function")
    function: Fields = tool["function"]
    name, description, parameters = function.get("name"), function.get("description"), function.get("parameters")
    if not isinstance(name, str) or not isinstance(description, str | None) or not isinstance(parameters, dict | None):
        raise refused("a tool's function needs a name; its description must be a string, its parameters an object")
    dumped: dict[str, object] = {"name": name, "description": description, "parameters": parameters}
    deferred = _flag(tool, "defer_loading")
    own = _flag(function, "defer_loading")
    if (strict := _flag(function, "strict")) is not None:
        dumped["strict"] = strict
    if own is not None or deferred is not None:
        dumped["defer_loading"] = deferred if own is None else own
    result: dict[str, object] = {"type": "function", "function": dumped}
    if deferred is not None:
        result["defer_loading"] = deferred
    return result


def _flag(fields: Fields, name: str) -> bool | None:
    value = fields.get(name)
    if value is None:
        return None
    flag = as_bool(value)
    if flag is None:
        raise refused(f"{name} of a tool must be a boolean")
    return flag
