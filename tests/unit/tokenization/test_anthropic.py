"""Anthropic's messages become the chat vLLM makes of them (spec/kv.md 4.6; each row held against vLLM 0.32 by tests/vllm)."""

from typing import Any

import pytest

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.anthropic import Manners, manners, read_messages
from epp.tokenization.chat import Chat, ChatRenderer, ChatSettings
from tests.unit.tokenization.encoders import ENCODER

HI = {"role": "user", "content": "hi"}
LENIENT = Manners(systems_first=False, disabled_effort="none")
STRICT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    "{% if reasoning_effort == 'none' %}{{ raise_exception('no') }}{% endif %}"
)
STRICT = Manners(systems_first=True, disabled_effort="low")


def read(manners: Manners = LENIENT, settings: ChatSettings | None = None, **body: Any) -> Chat:
    return read_messages({"max_tokens": 5, "messages": [HI], **body}, settings or ChatSettings(), manners)


def said(*content: object, role: str = "user", manners: Manners = LENIENT) -> list[Any]:
    return [message for message, _ in read(manners, messages=[{"role": role, "content": list(content)}]).messages]


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("be brief", "be brief"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "b"}], "b"),
        ("", None),
        ([], None),
        (None, None),
    ],
)
def test_system_text_comes_first_without_billing_headers(system: object, text: str | None) -> None:
    """One message, or none where there is nothing to say."""
    messages = [message for message, _ in read(system=system).messages]
    assert messages == ([HI] if text is None else [{"role": "system", "content": text}, HI])


def test_later_system_texts_stay_or_move_to_the_front() -> None:
    """As the template can take them."""
    later = {"role": "system", "content": "later"}
    assert [m["role"] for m, _ in read(messages=[HI, later, HI]).messages] == ["user", "system", "user"]
    merged = [message for message, _ in read(STRICT, system="first ", messages=[HI, later, HI]).messages]
    assert merged == [{"role": "system", "content": "first later"}, HI, HI]


def test_blocks_become_messages() -> None:
    """Results of tools first, calls and thoughts beside the text, what is empty left out."""
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert said({"type": "text", "text": "so"}, result) == [
        {"role": "tool", "tool_call_id": "1", "content": "a\nb"},
        {"role": "user", "content": "so"},
    ]
    assert said({"type": "text", "text": ""}) == []
    assert said({"type": "text", "text": "a"}, {"type": "text", "text": "b"})[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    (answer,) = said(
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"b": 1, "a": "é"}},
        role="assistant",
    )
    assert answer == {
        "role": "assistant",
        "reasoning": "hm",
        "tool_calls": [{"id": "1", "function": {"arguments": '{"b": 1, "a": "\\u00e9"}', "name": "f"}, "type": "function"}],
    }


def test_references_and_pictures_in_results_become_messages_of_their_own() -> None:
    """A picture is the user's, a reference the tool's."""
    content = [{"type": "tool_reference", "tool_name": "f"}, {"type": "image", "source": {"type": "url", "url": "u"}}]
    roles = [
        (m["role"], m["content"] if isinstance(m["content"], str) else m["content"][0]["type"])
        for m in said({"type": "tool_result", "content": content})
    ]
    assert roles == [("tool", ""), ("user", "image_url"), ("tool", "tool_reference")]


def test_tools_are_those_in_effect_at_the_end() -> None:
    """Added and removed on the way; a schema without a type is an object's, the type last."""
    tools = [{"name": "f", "input_schema": {"properties": {}}}, {"name": "g", "input_schema": {"type": "object"}, "defer_loading": True}]
    changes = [
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}},
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "h", "input_schema": {}}}},
    ]
    assert read(tools=tools).tools == [
        {"type": "function", "function": {"name": "f", "description": None, "parameters": {"properties": {}, "type": "object"}}},
        {"type": "function", "function": {"name": "g", "description": None, "parameters": {"type": "object"}, "defer_loading": True}},
    ]
    changed = read(tools=tools, messages=[HI, {"role": "system", "content": changes}]).tools or []
    assert [tool["function"]["name"] for tool in changed] == ["g", "h"]  # type: ignore[index] # tools are objects
    assert read(tools=tools, tool_choice={"type": "none"}, settings=ChatSettings(exclude_tools_when_choice_none=True)).tools is None


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"output_config": {"effort": "high"}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}, None),
    ],
)
def test_thinking_becomes_an_effort(fields: dict[str, Any], effort: str | None) -> None:
    """Disabled thinking wins."""
    assert read(**fields).fields["reasoning_effort"] == effort


def test_a_call_without_id_gets_one_from_a_clock_nobody_knows() -> None:
    """So there are no ids of tokens."""
    with pytest.raises(NoTokensError) as absence:
        said({"type": "tool_use", "name": "f"}, role="assistant")
    assert absence.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", Manners(systems_first=False, disabled_effort="low")),
        ("{{ messages[0].content }}{{ enable_thinking }}", Manners(systems_first=False, disabled_effort="none")),
        (
            STRICT_TEMPLATE,
            Manners(systems_first=True, disabled_effort="low"),
        ),
        ("{{ strftime_now('%Y') }}{{ reasoning_effort }}", Manners(systems_first=True, disabled_effort="none")),
        ("{% broken", Manners(systems_first=True, disabled_effort="low")),
    ],
)
def test_manners_are_found_out_as_the_engine_does(template: str, expected: Manners) -> None:
    """It tries the template, without the globals templates know; what it cannot try, it takes for strict."""
    assert manners(ChatRenderer(ChatSettings(model_template=template), ENCODER)) == expected
