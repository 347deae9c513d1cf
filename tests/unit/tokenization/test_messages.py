"""From messages to the conversation of a template (spec/kv.md 4.3.1, 4.3.5, 4.3.6; each row probed against vLLM 0.32)."""

import copy
import json

import pytest

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.content_format import ContentFormat
from epp.tokenization.messages import check_messages, conversation, without_developer_role
from epp.tokenization.template import Message

TEXT = {"type": "text", "text": "a"}
CALL = {"type": "function", "index": 0, "function": {"strict": 1, "name": "f", "arguments": '{"b": 1, "a": 2}'}, "id": "1"}


def seen_by_template(messages: object, content_format: ContentFormat) -> list[Message]:
    return conversation(check_messages(messages), content_format)


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": list(parts)}


AS_TEXT = [
    ({"role": "user", "content": "a"}, {"role": "user", "content": "a"}),
    ({"role": "user"}, {"role": "user", "content": ""}),
    ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
    (user(TEXT, {"type": "text", "text": ""}, TEXT), {"role": "user", "content": "a\na"}),
    (user("x", TEXT), {"role": "user", "content": "x\na"}),
    (
        user({"type": "thinking", "thinking": "t"}, {"type": "refusal", "refusal": "r"}, {"type": "input_text", "text": "i"}),
        {"role": "user", "content": "t\nr\ni"},
    ),
    (user({"type": "tool_reference", "name": "n"}), {"role": "user", "content": "n"}),
    ({"role": "narrator", "content": [{"type": "text"}, TEXT]}, {"role": "narrator", "content": "a"}),
    ({"role": "user", "content": "a", "name": "bob", "task": 5, "zzz": 1}, {"role": "user", "content": "a", "name": "bob"}),
    ({"role": "system", "content": "x-anthropic-billing-header: 1\nrest"}, {"role": "system", "content": "rest"}),
    ({"role": "system", "content": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, TEXT]}, {"role": "system", "content": "a"}),
    (
        {"role": "user", "content": "x-anthropic-billing-header: 1\nrest"},
        {"role": "user", "content": "x-anthropic-billing-header: 1\nrest"},
    ),
    (
        {"role": "assistant", "content": "a", "reasoning_content": "why"},
        {"role": "assistant", "content": "a", "reasoning": "why", "reasoning_content": "why"},
    ),
    (
        {"role": "assistant", "content": "a", "reasoning": "kept", "reasoning_content": "not"},
        {"role": "assistant", "content": "a", "reasoning": "kept", "reasoning_content": "kept"},
    ),
    ({"role": "assistant", "content": "a", "tool_calls": []}, {"role": "assistant", "content": "a"}),
    ({"role": "tool", "content": [TEXT, TEXT], "tool_call_id": "1"}, {"role": "tool", "content": "a\na", "tool_call_id": "1"}),
    ({"role": "developer", "content": "a"}, {"role": "developer", "content": "a", "tools": None}),
]


@pytest.mark.parametrize(("message", "seen"), AS_TEXT, ids=lambda value: json.dumps(value)[:60])
def test_templates_of_texts_see(message: dict[str, object], seen: dict[str, object]) -> None:
    """One text a message, only the keys the engine passes on."""
    before = copy.deepcopy(message)
    assert seen_by_template([message], "string") == [seen]
    assert message == before


AS_PARTS = [
    ({"role": "user", "content": "a"}, [TEXT]),
    ({"role": "user", "content": ""}, [{"type": "text", "text": ""}]),
    ({"role": "assistant", "content": None}, []),
    (
        user({"cache_control": {"x": 1}, "text": "a", "name": "n", "type": "text", "own": 2}),
        [{"type": "text", "text": "a", "cache_control": {"x": 1}, "own": 2}],
    ),
    (user("x", {"type": "thinking", "thinking": "t"}), [{"type": "text", "text": "x"}, {"type": "text", "text": "t"}]),
    ({"role": "tool", "content": [TEXT, TEXT]}, "a\na"),
    ({"role": "tool", "content": [{"type": "tool_reference", "name": "n"}, TEXT]}, [{"type": "tool_reference", "name": "n"}, TEXT]),
]


@pytest.mark.parametrize(("message", "content"), AS_PARTS, ids=lambda value: json.dumps(value)[:60])
def test_templates_of_parts_see(message: dict[str, object], content: object) -> None:
    """A list of parts with their unknown keys; results of tools are texts again."""
    assert seen_by_template([message], "openai")[0]["content"] == content


def test_tool_calls_come_in_schema_order_with_parsed_arguments() -> None:
    """Templates that dump a call as JSON show the engine's order of keys; the client's order is kept inside arguments and extras."""
    (message,) = seen_by_template([{"role": "assistant", "tool_calls": [CALL]}], "string")
    assert json.dumps(message["tool_calls"]) == (
        '[{"id": "1", "function": {"arguments": {"b": 1, "a": 2}, "name": "f", "strict": 1}, "type": "function", "index": 0}]'
    )


@pytest.mark.parametrize("arguments", ["", "null", "[1]", "5", "not json"])
def test_arguments_that_are_no_object_count_as_empty(arguments: str) -> None:
    """A broken call of an earlier turn must not make the conversation unusable."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (message,) = seen_by_template([{"role": "assistant", "tool_calls": [call]}], "string")
    assert message["tool_calls"] == [{"id": "1", "function": {"arguments": {}, "name": "f"}, "type": "function"}]


def test_tools_of_a_developer_come_in_schema_order_if_they_are_tools() -> None:
    """Otherwise they pass as the client wrote them."""
    tools = [{"type": "function", "own": 1, "function": {"parameters": {}, "own": 2, "strict": "yes", "name": "f"}}]
    (message,) = seen_by_template([{"role": "developer", "content": "a", "tools": tools}], "string")
    assert (
        json.dumps(message["tools"])
        == '[{"function": {"name": "f", "parameters": {}, "strict": true, "own": 2}, "type": "function", "own": 1}]'
    )
    (message,) = seen_by_template([{"role": "developer", "content": "a", "tools": 5}], "string")
    assert message["tools"] == 5


REFUSED: list[object] = [
    [],
    "hi",
    ["hi"],
    [{"content": "a"}],
    [{"role": 5, "content": "a"}],
    [{"role": "user", "content": None}],
    [{"role": "tool", "content": None}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": TEXT}],
    [{"role": "user", "content": "a", "name": None}],
    [{"role": "user", "content": "a", "tool_calls": 5}],
    [user("a")],
    [user({"type": "text"})],
    [user({"text": "a"})],
    [user({"type": "input_text", "text": "a"})],
    [user({"type": "text", "text": "a", "uuid": "u"})],
    [user({"type": "text", "text": 5})],
    [user({"type": "zzz", "text": "a"})],
    [{"role": "narrator", "content": [{"type": "zzz"}]}],
    [{"role": "narrator", "content": [{"type": 5}]}],
    [{"role": "narrator", "content": [{"type": "text", "text": 5}]}],
    [{"role": "narrator", "content": "a", "tool_call_id": 5}],
    [{"role": "assistant", "content": None, "tool_calls": None}],
    [{"role": "assistant", "tool_calls": [{**CALL, "id": None}]}],
    [{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}],
    [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}],
    [
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "t"}],
            "refusal": "r",
            "function_call": {"name": "f", "arguments": ""},
        }
    ],
]


@pytest.mark.parametrize("messages", REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_messages_the_engine_refuses(messages: object) -> None:
    """Each was answered with an error by vLLM 0.32."""
    with pytest.raises(NoTokensError) as absence:
        seen_by_template(messages, "string")
    assert absence.value.reason is Reason.ENGINE_REFUSES


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "text", "text": "a", "uuid": "u", "image_url": None},
    ],
)
def test_media_are_named_as_the_reason(part: object) -> None:
    """Their placeholders and hashes come from a processor we do not have."""
    with pytest.raises(NoTokensError) as absence:
        seen_by_template([user(TEXT, part)], "openai")
    assert absence.value.reason is Reason.MULTIMODAL


def test_a_template_without_developers_sees_one_system_message_in_front() -> None:
    """Developers speak as the system; empty texts are dropped, lists become lines."""
    messages = seen_by_template(
        [
            {"role": "user", "content": "q"},
            {"role": "developer", "content": "d"},
            {"role": "system", "content": ""},
            {"role": "system", "content": [TEXT, TEXT]},
        ],
        "openai",
    )
    assert without_developer_role(messages) == [
        {"role": "system", "content": "d\n\na\na"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
    ]


def test_a_developer_in_front_just_changes_its_name() -> None:
    """Nothing is merged where the order is right already, and nothing at all happens without a developer."""
    messages = seen_by_template([{"role": "developer", "content": "d"}, {"role": "user", "content": "q"}], "string")
    assert without_developer_role(messages) == [{"role": "system", "content": "d"}, {"role": "user", "content": "q"}]
    messages = seen_by_template([{"role": "user", "content": "q"}, {"role": "system", "content": "late"}], "string")
    assert without_developer_role(messages) is messages
