"""Requests of the Responses API become the chat vLLM makes of them (spec/kv.md 4.6; each row held against vLLM 0.32 by tests/vllm)."""

from typing import Any

import pytest

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.chat import Chat, ChatRenderer, ChatSettings
from epp.tokenization.responses import read_responses
from tests.unit.tokenization.encoders import ENCODER, text_of

USER = {"role": "user", "content": "q"}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
TOOL_CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}, "type": "function"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
ANSWER = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]}
FUNCTION = {"type": "function", "name": "f", "parameters": {"z": 1, "a": 2}}


def read(given: object = "q", **body: Any) -> Chat:
    return read_responses({"input": given, **body}, ChatSettings(max_model_len=100))


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("q", [USER]),
        ([USER | {"type": "message", "name": "dropped"}], [USER]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "q", "own": 1}]}], [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]),
        ([ANSWER], [{"role": "assistant", "content": "a"}]),
        ([USER, CALL, CALL], [USER, {"role": "assistant", "tool_calls": [TOOL_CALL, TOOL_CALL]}]),
        ([THOUGHT, ANSWER, CALL], [{"role": "assistant", "reasoning": "hm", "content": "a", "tool_calls": [TOOL_CALL]}]),
        ([ANSWER, ANSWER], [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a"}]),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}], [{"role": "assistant", "reasoning": "s"}]),
        ([{"type": "reasoning", "summary": []}], [{"role": "assistant", "reasoning": ""}]),
        ([{"type": "function_call_output", "call_id": "1", "output": "r"}], [{"role": "tool", "content": "r", "tool_call_id": "1"}]),
        (
            [{**CALL, "namespace": "ns"}, {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "é"}],
            [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {**TOOL_CALL, "function": {"name": "ns__f", "arguments": "{}"}},
                        {"id": "2", "function": {"name": "g", "arguments": '{"input": "é"}'}, "type": "function"},
                    ],
                }
            ],
        ),
    ],
)  # fmt: skip
def test_items_become_messages(items: object, messages: list[object]) -> None:
    """Calls, thoughts and texts of the assistant gather in one message while there is room."""
    assert [message for message, _ in read(items).messages] == messages
    assert [message for message, _ in read(items, instructions="be").messages] == [{"role": "system", "content": "be"}, *messages]


@pytest.mark.parametrize(
    ("items", "continues"),
    [
        ("q", False),
        ([], False),
        ([{**ANSWER, "status": "incomplete"}], True),
        ([{**ANSWER, "status": "in_progress"}, USER], False),
        ([{**ANSWER, "status": "completed"}], False),
        ([{"role": "assistant", "content": "a", "status": "incomplete"}], False),
        ([{**THOUGHT, "status": "incomplete"}], True),
        ([{**CALL, "status": "incomplete"}], False),
    ],
)
def test_a_message_that_was_cut_off_is_continued(items: object, continues: object) -> None:
    """Only the last one, if it has a status in the API."""
    fields = read(items).fields
    assert (fields["add_generation_prompt"], fields["continue_final_message"]) == (not continues, continues)


def test_tools_are_flattened() -> None:
    """Functions, those of namespaces, free-text tools; the rest is not shown to the model."""
    namespace = {"type": "namespace", "name": "ns", "description": "d", "tools": [FUNCTION]}
    tools = read(tools=[FUNCTION, namespace, {"type": "custom", "name": "g"}, {"type": "web_search"}]).tools or []
    functions: list[Any] = [tool["function"] for tool in tools]
    assert [function["name"] for function in functions] == ["f", "ns__f", "g"]
    assert list(functions[0]["parameters"]) == ["z", "a"]
    assert functions[2]["parameters"]["required"] == ["input"]
    assert read(tools=[], tool_choice="auto").tools is None
    assert read(tools=[namespace], tool_choice={"type": "function", "name": "f"}).tools


def test_special_tokens_are_added_and_long_prompts_cut() -> None:
    """Unlike chats: the API has no field for the first, and truncation for the second."""
    renderer = ChatRenderer(ChatSettings(model_template="{{ messages[0].content }}", max_model_len=100), ENCODER)
    assert text_of(renderer.token_ids(read("hi"))) == "^hi$"
    assert len(renderer.token_ids(read("x" * 300, truncation="auto", max_output_tokens=5))) == 99


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"previous_response_id": "r"}, Reason.UNSUPPORTED),
        ({"input": [{"type": "additional_tools", "role": "developer"}]}, Reason.UNSUPPORTED),
        ({"input": [{**ANSWER, "content": [{"type": "refusal", "refusal": "no"}]}]}, Reason.UNSUPPORTED),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, Reason.MULTIMODAL),
    ],
)
def test_what_only_a_server_knows_has_no_tokens(body: dict[str, Any], reason: Reason) -> None:
    """Not called refused: it may be served."""
    with pytest.raises(NoTokensError) as absence:
        read(**{"given": body.pop("input", "q"), **body})
    assert absence.value.reason is reason
