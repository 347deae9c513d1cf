"""Requests of all kinds, made from a seed: what clients send, what they should not send, and what hardly anybody sends.

Each generator takes the random source and returns path and body. Most requests are served; a share is refused by the engine.
"""

import json
import random
from collections.abc import Callable
from typing import Any, Final

from tests.vllm.launch import MODEL

Body = dict[str, Any]

_WORDS: Final = (
    *("hi", "Who wrote Dune?", "  padded  ", "two\nlines\n", "é e\u0301 ﬁ Å", "日本語と中文", "😀👍🏽👨‍👩‍👧", "مرحبا שלום", "x" * 90),
    *("<|im_end|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "<think>a</think>b", "</s>[INST]", "{{ bos_token }}", "{% raw %}"),
    *("1,234.5e-7", "\t\ttabs", "\u00a0nbsp\u200bzero", "\x00nul\x1b", "def f(x):\n    return x ** 2", '{"a": [1, null]}', "&<>\"'", "\\n\\u00e9"),
)  # fmt: skip
_ROLES: Final = ("user", "user", "user", "assistant", "assistant", "system", "tool", "developer", "narrator", "function")
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def text(rng: random.Random) -> str:
    """Some words, rarely none."""
    if rng.random() < 0.06:
        return ""
    return "".join(rng.choice(_WORDS) + rng.choice((" ", " ", "\n", "")) for _ in range(rng.randrange(1, 7)))


def json_value(rng: random.Random, depth: int = 2) -> object:
    """Anything JSON can say, keys in no order."""
    kind = rng.randrange(8 if depth else 6)
    simple = (None, rng.random() < 0.5, rng.randrange(-5, 10**12), rng.random() * 10, 1.0, text(rng))
    if kind < 6:
        return simple[kind]
    if kind == 6:
        return [json_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    return json_object(rng, depth - 1)


def json_object(rng: random.Random, depth: int = 2) -> dict[str, object]:
    """An object with a few keys."""
    return {rng.choice(("z", "a", "é", "type", "m n", text(rng)[:9])): json_value(rng, depth) for _ in range(rng.randrange(4))}


def _maybe(rng: random.Random, share: float, body: Body, key: str, value: Callable[[], object]) -> None:
    if rng.random() < share:
        body[key] = value()


def _shuffled(rng: random.Random, body: Body) -> Body:
    items = list(body.items())
    rng.shuffle(items)
    return dict(items)


# --- chat completions -------------------------------------------------------------------------------------------


def chat(rng: random.Random) -> tuple[str, Body]:
    """A chat completion with anything that shapes a prompt."""
    body: Body = {"model": MODEL, "messages": _messages(rng)}
    _maybe(rng, 0.3, body, "max_tokens", lambda: rng.randrange(1, 50))
    _maybe(rng, 0.35, body, "tools", lambda: [_tool(rng) for _ in range(rng.randrange(1, 4))])
    _maybe(rng, 0.15, body, "tool_choice", lambda: rng.choice(("none", "auto", "required")))
    _maybe(rng, 0.15, body, "reasoning_effort", lambda: rng.choice(_EFFORTS))
    _maybe(rng, 0.2, body, "chat_template_kwargs", lambda: _kwargs(rng))
    _maybe(rng, 0.1, body, "documents", lambda: [{"title": text(rng), "text": text(rng)} for _ in range(rng.randrange(3))])
    if rng.random() < 0.15:
        body["add_generation_prompt"] = rng.choice((True, False, "off", 1))
        _maybe(rng, 0.7, body, "continue_final_message", lambda: not body["add_generation_prompt"] or rng.random() < 0.1)
    _maybe(rng, 0.1, body, "add_special_tokens", lambda: rng.random() < 0.7)
    _maybe(rng, 0.1, body, "cache_salt", lambda: rng.choice(("salt", "s" * 128, "no/salt", "")))
    _limits(rng, body)
    return "/v1/chat/completions", _shuffled(rng, body)


def _limits(rng: random.Random, body: Body) -> None:
    _maybe(rng, 0.1, body, "truncate_prompt_tokens", lambda: rng.choice((-1, 1, 7, 30, 100, 0, 5000)))
    _maybe(rng, 0.08, body, "truncation_side", lambda: rng.choice(("left", "right")))


def _kwargs(rng: random.Random) -> Body:
    names = ("enable_thinking", "date_string", "effort_note", "reasoning_effort", "documents_x", "bos_token", "add_generation_prompt")
    values = (True, False, None, "auto", "text", 1, "01 Jan 2030")
    return {rng.choice(names): rng.choice(values) for _ in range(rng.randrange(1, 4))}


def _messages(rng: random.Random) -> list[object]:
    count = rng.randrange(1, 7)
    if rng.random() < 0.5:  # a decent conversation
        roles = ["system"] * (rng.random() < 0.5) + ["user", "assistant"] * count
        return [_message(rng, role) for role in roles[: max(count, 2)]]
    return [_message(rng, rng.choice(_ROLES)) for _ in range(count)]


def _message(rng: random.Random, role: str) -> Body:
    body: Body = {"role": role, "content": _content(rng, role)}
    if role == "assistant":
        _maybe(rng, 0.3, body, "tool_calls", lambda: [_call(rng) for _ in range(rng.randrange(3))])
        _maybe(rng, 0.25, body, rng.choice(("reasoning", "reasoning_content")), lambda: text(rng))
        if rng.random() < 0.1:
            body["content"] = None
    if role in ("tool", "function") or rng.random() < 0.03:
        _maybe(rng, 0.85, body, "tool_call_id", lambda: "call_1")
    _maybe(rng, 0.1, body, "name", lambda: text(rng))
    _maybe(rng, 0.05, body, "extra", lambda: json_value(rng))
    if role == "developer":
        _maybe(rng, 0.2, body, "tools", lambda: [_tool(rng)])
    return _shuffled(rng, body)


def _content(rng: random.Random, role: str) -> object:
    if rng.random() < 0.7:
        return text(rng)
    parts: list[Body] = []
    for _ in range(rng.randrange(1, 4)):
        part: Body = {"type": "text", "text": text(rng)}
        _maybe(rng, 0.1, part, "cite", lambda: "1")
        if rng.random() < 0.08:
            part = rng.choice(
                (
                    {"type": "input_text", "text": text(rng)},
                    {"type": "refusal", "refusal": "no"},
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "unknown", "text": "x"},
                    {"type": "text"},
                    {"text": "untyped"},
                )
            )
        parts.append(_shuffled(rng, part))
    return parts if role != "function" else text(rng)


def _call(rng: random.Random) -> Body:
    arguments = rng.choice(
        (json.dumps(json_object(rng), ensure_ascii=rng.random() < 0.5), "", "{}", "[1]", "no json", '{"b":1,"a":{"é":2.50}}')
    )
    call: Body = {
        "id": rng.choice(("call_1", "x")),
        "type": "function",
        "function": _shuffled(rng, {"name": rng.choice(("f", "get weather")), "arguments": arguments}),
    }
    _maybe(rng, 0.2, call, "index", lambda: 0)
    return _shuffled(rng, call)


def _tool(rng: random.Random) -> Body:
    function: Body = {"name": rng.choice(("f", "get_weather", "größe"))}
    _maybe(rng, 0.7, function, "description", lambda: rng.choice((text(rng), None)))
    _maybe(rng, 0.8, function, "parameters", lambda: _schema(rng))
    _maybe(rng, 0.2, function, "strict", lambda: rng.choice((True, False, None)))
    _maybe(rng, 0.1, function, "extra", lambda: 1)
    tool: Body = {"type": "function", "function": _shuffled(rng, function)}
    _maybe(rng, 0.1, tool, "defer_loading", lambda: True)
    return _shuffled(rng, tool)


def _schema(rng: random.Random) -> Body:
    return _shuffled(
        rng, {"type": "object", "properties": {"z": {"type": "string", "enum": ["é", "a"]}, "a": json_object(rng)}, "required": ["z"]}
    )


# --- completions ------------------------------------------------------------------------------------------------


def completion(rng: random.Random) -> tuple[str, Body]:
    """Text, token ids, and batches of either."""
    ids = [[rng.randrange(100_000) for _ in range(rng.randrange(1, 40))] for _ in range(rng.randrange(1, 4))]
    prompt = rng.choice((text(rng), [text(rng) for _ in range(rng.randrange(1, 5))], ids[0], ids, [1, 2.0, True], [], ""))
    body: Body = {"model": MODEL, "prompt": prompt, "max_tokens": rng.randrange(1, 30)}
    _maybe(rng, 0.15, body, "add_special_tokens", lambda: rng.choice((True, False)))
    _maybe(rng, 0.05, body, "suffix", lambda: "end")
    _maybe(rng, 0.1, body, "echo", lambda: True)
    _limits(rng, body)
    return "/v1/completions", _shuffled(rng, body)


# --- responses --------------------------------------------------------------------------------------------------


def response(rng: random.Random) -> tuple[str, Body]:
    """Instructions, items of all kinds, tools."""
    body: Body = {"model": MODEL, "input": text(rng) if rng.random() < 0.25 else [_item(rng) for _ in range(rng.randrange(1, 7))]}
    _maybe(rng, 0.5, body, "instructions", lambda: text(rng))
    _maybe(rng, 0.3, body, "max_output_tokens", lambda: rng.randrange(1, 50))
    _maybe(rng, 0.3, body, "tools", lambda: [_flat_tool(rng) for _ in range(rng.randrange(3))])
    _maybe(rng, 0.1, body, "tool_choice", lambda: rng.choice(("none", "auto", "required", {"type": "function", "name": "f"})))
    _maybe(rng, 0.2, body, "reasoning", lambda: rng.choice(({"effort": rng.choice(_EFFORTS)}, {}, None, {"summary": "auto"})))
    _maybe(rng, 0.15, body, "chat_template_kwargs", lambda: _kwargs(rng))
    _maybe(rng, 0.1, body, "truncation", lambda: rng.choice(("auto", "disabled", None)))
    return "/v1/responses", _shuffled(rng, body)


def _item(rng: random.Random) -> Body:
    kind = rng.randrange(12)
    if kind < 4:
        role = rng.choice(("user", "user", "system", "developer", "ghost") if rng.random() < 0.2 else ("user",))
        content = text(rng) if rng.random() < 0.6 else [{"type": "input_text", "text": text(rng)} for _ in range(rng.randrange(1, 3))]
        return _shuffled(rng, {"role": role, "content": content} | ({"type": "message"} if rng.random() < 0.5 else {}))
    if kind < 6:
        return {"role": "assistant", "content": text(rng)}
    if kind == 6:
        item: Body = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text(rng)}]}
        _maybe(rng, 0.4, item, "id", lambda: "msg_1")
        _maybe(rng, 0.4, item, "status", lambda: rng.choice(("completed", "incomplete", "in_progress")))
        return item
    if kind == 7:
        item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": text(rng)}] if rng.random() < 0.4 else []}
        _maybe(rng, 0.7, item, "content", lambda: [{"type": "reasoning_text", "text": text(rng)}])
        return item
    if kind < 10:
        item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"b": 1, "a": "é"}'}
        _maybe(rng, 0.2, item, "namespace", lambda: "ns")
        return item
    if kind == 10:
        return {"type": "function_call_output", "call_id": "c1", "output": text(rng)}
    return rng.choice(
        (
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": text(rng)},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": text(rng)},
            {"type": "item_reference", "id": "x"},
        )
    )


def _flat_tool(rng: random.Random) -> Body:
    function: Body = {"type": "function", "name": "f", "parameters": _schema(rng)}
    _maybe(rng, 0.6, function, "description", lambda: text(rng))
    _maybe(rng, 0.3, function, "strict", lambda: True)
    return rng.choice(
        (
            function,
            function,
            {"type": "custom", "name": "g", "description": "free"},
            {"type": "namespace", "name": "ns", "description": "d", "tools": [function]},
        )
    )


# --- Anthropic's messages ---------------------------------------------------------------------------------------


def anthropic(rng: random.Random) -> tuple[str, Body]:
    """System texts, blocks of all kinds, thinking, tools."""
    body: Body = {
        "model": MODEL,
        "max_tokens": rng.randrange(1, 50),
        "messages": [_turn(rng, i) for i in range(rng.randrange(1, 6))],
    }
    header = "x-anthropic-billing-header: cc_version=1\n"
    _maybe(rng, 0.5, body, "system", lambda: rng.choice((text(rng), [{"type": "text", "text": t} for t in (header, text(rng), text(rng))])))
    _maybe(rng, 0.3, body, "tools", lambda: [_anthropic_tool(rng) for _ in range(rng.randrange(1, 3))])
    _maybe(rng, 0.15, body, "tool_choice", lambda: rng.choice(({"type": "auto"}, {"type": "any"}, {"type": "none"})))
    _maybe(rng, 0.1, body, "thinking", lambda: rng.choice(({"type": "adaptive"}, {"type": "enabled", "budget_tokens": 10})))
    _maybe(rng, 0.1, body, "output_config", lambda: {"effort": rng.choice(("low", "high", "max"))})
    _maybe(rng, 0.15, body, "chat_template_kwargs", lambda: _kwargs(rng))
    return "/v1/messages", _shuffled(rng, body)


def _turn(rng: random.Random, index: int) -> Body:
    role = "system" if rng.random() < 0.05 else ("assistant" if index % 2 else "user")
    if rng.random() < 0.4:
        return {"role": role, "content": text(rng)}
    return {"role": role, "content": [_block(rng, role) for _ in range(rng.randrange(1, 4))]}


def _block(rng: random.Random, role: str) -> Body:
    if role == "assistant" and rng.random() < 0.5:
        return rng.choice(
            (
                {"type": "thinking", "thinking": text(rng), "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": json_object(rng)},
                {"type": "redacted_thinking", "data": "x"},
            )
        )
    if role == "user" and rng.random() < 0.3:
        content = rng.choice((text(rng), [{"type": "text", "text": text(rng)}, {"type": "text", "text": "b"}], None))
        return {"type": "tool_result", "tool_use_id": "t1", "content": content}
    return {"type": "text", "text": text(rng)} | ({"cache_control": {"type": "ephemeral"}} if rng.random() < 0.2 else {})


def _anthropic_tool(rng: random.Random) -> Body:
    tool: Body = {"name": "f", "input_schema": rng.choice((_schema(rng), {"properties": {}}, {}))}
    _maybe(rng, 0.6, tool, "description", lambda: text(rng))
    return _shuffled(rng, tool)


def requests(seed: int, count: int) -> list[tuple[str, Body]]:
    """Half of them chats, the rest of all kinds."""
    rng = random.Random(seed)
    kinds = (chat, chat, chat, completion, response, anthropic)
    return [rng.choice(kinds)(rng) for _ in range(count)]
