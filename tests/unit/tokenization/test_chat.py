"""A chat request to token ids: tools, template arguments, choice of the template, limits (spec/kv.md 4.3; probed against vLLM 0.32)."""

import json
from typing import Any

import pytest

from epp.domain import TokenIds
from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.chat import ChatRenderer, ChatSettings
from epp.tokenization.chat_completions import read_chat
from tests.unit.tokenization.encoders import ENCODER, text_of

MESSAGES = [{"role": "user", "content": "hi"}]
# Shows everything a template can see.
SHOW = (
    "{{ bos }}{{ messages | tojson }}|{{ tools | tojson }}|{{ documents | tojson }}|{{ add_generation_prompt }}"
    "|{{ enable_thinking }}|{{ reasoning_effort }}|{{ mood }}"
)
SAID = '[{"role": "user", "content": "hi"}]'


def rendered(settings: ChatSettings | None = None, **body: Any) -> str:
    settings = settings or ChatSettings(model_template=SHOW, special_tokens={"bos": "<s>"})
    return ChatRenderer(settings, ENCODER).text(read_chat({"messages": MESSAGES, **body}, settings))


def token_ids(settings: ChatSettings, **body: Any) -> TokenIds:
    return ChatRenderer(settings, ENCODER).token_ids(read_chat({"messages": MESSAGES, **body}, settings))


def show(**settings: Any) -> ChatSettings:
    return ChatSettings(model_template=SHOW, **settings)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, f"<s>{SAID}|null|null|True|||"),
        ({"add_generation_prompt": False}, f"<s>{SAID}|null|null|False|||"),
        ({"add_generation_prompt": "off"}, f"<s>{SAID}|null|null|False|||"),
        ({"documents": [{"title": "t"}]}, f'<s>{SAID}|null|[{{"title": "t"}}]|True|||'),
        ({"reasoning_effort": "low"}, f"<s>{SAID}|null|null|True|True|low|"),
        ({"reasoning_effort": "none"}, f"<s>{SAID}|null|null|True|False|none|"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, f"<s>{SAID}|null|null|True|True|none|"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": None}}, f"<s>{SAID}|null|null|True||none|"),
        ({"chat_template_kwargs": {"mood": "good", "unknown": 1}}, f"<s>{SAID}|null|null|True|||good"),
        ({"chat_template_kwargs": {"mood": "auto"}}, f"<s>{SAID}|null|null|True|||"),
        ({"chat_template_kwargs": {"add_generation_prompt": False, "bos": "B"}}, f"B{SAID}|null|null|True|||"),
        ({"chat_template_kwargs": {"tools": [{"any": 1}]}}, f'<s>{SAID}|[{{"any": 1}}]|null|True|||'),
    ],
)
def test_template_arguments_of_a_request(body: dict[str, Any], expected: str) -> None:
    """Top-level fields win over kwargs, null and "auto" say nothing, and names the template does not use are dropped."""
    assert rendered(**body) == expected


def test_server_defaults_fill_what_the_request_leaves_open() -> None:
    """They lose against kwargs; a null default is passed on."""
    settings = show(default_kwargs={"mood": "calm", "enable_thinking": None}, add_generation_prompt=False)
    assert rendered(settings) == f"{SAID}|null|null|False|None||calm"
    assert rendered(settings, chat_template_kwargs={"mood": "good"}, add_generation_prompt=True) == f"{SAID}|null|null|True|None||good"


TOOL = {"extra": 1, "function": {"extra": 2, "parameters": {"z": 1, "a": 2}, "name": "f"}}


@pytest.mark.parametrize(
    ("tool", "dumped"),
    [
        (TOOL, '{"type": "function", "function": {"name": "f", "description": null, "parameters": {"z": 1, "a": 2}}}'),
        (
            {"type": "function", "function": {"name": "f"}},
            '{"type": "function", "function": {"name": "f", "description": null, "parameters": null}}',
        ),
        (
            {"function": {"name": "f", "strict": "yes"}, "defer_loading": False},
            '{"type": "function", "function": {"name": "f", "description": null, "parameters": null, "strict": true, "defer_loading": false}, "defer_loading": false}',
        ),
    ],
)
def test_tools_are_dumped_as_the_engine_dumps_them(tool: object, dumped: str) -> None:
    """Missing keys become null, unknown ones go, the schema keeps the client's order."""
    assert rendered(tools=[tool]).split("|")[1] == f"[{dumped}]"


def test_tools_are_rendered_even_when_none_may_be_called_unless_the_server_says_otherwise() -> None:
    """A tool_choice of "none" alone hides nothing."""
    assert '"name": "f"' in rendered(tools=[TOOL], tool_choice="none")
    assert rendered(show(exclude_tools_when_choice_none=True), tools=[TOOL], tool_choice="none").split("|")[1] == "null"
    assert '"name": "f"' in rendered(show(exclude_tools_when_choice_none=True), tools=[TOOL])


def test_the_template_is_chosen_as_the_engine_chooses() -> None:
    """The request's (if trusted), the server's, the processor's while there are no tools, the tokenizer's by name."""
    by_name = {"default": "default", "tool_use": "tools", "other": "other"}
    assert rendered(ChatSettings(model_template=by_name)) == "default"
    assert rendered(ChatSettings(model_template=by_name), tools=[TOOL]) == "tools"
    assert rendered(ChatSettings(model_template=by_name, processor_template="processor")) == "processor"
    assert rendered(ChatSettings(model_template=by_name, processor_template="processor"), tools=[TOOL]) == "tools"
    server = ChatSettings(model_template=by_name, processor_template="processor", own_template="server", trust_request_template=True)
    assert rendered(server) == "server"
    assert rendered(server, chat_template="request") == "request"
    assert rendered(server, chat_template="other") == "other"
    assert rendered(server, chat_template="") == "server"
    assert rendered(ChatSettings(model_template=by_name, trust_request_template=True), chat_template_kwargs={"chat_template": "kw"}) == "kw"


def test_content_comes_as_the_template_wants_it_or_as_the_server_says() -> None:
    """Read off the template unless configured."""
    listing = "{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}"
    assert rendered(ChatSettings(model_template=listing)) == "(hi)"
    assert rendered(ChatSettings(model_template="{{ messages[0].content }}", content_format="openai")) == "[{'type': 'text', 'text': 'hi'}]"
    assert rendered(ChatSettings(model_template=listing, content_format="string")) == "()()"


def test_the_final_message_is_continued_where_it_ends() -> None:
    """The template's end of turn is cut off, with spaces it trimmed."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</end>{% endfor %}"
    request = {
        "add_generation_prompt": False,
        "continue_final_message": True,
        "messages": [*MESSAGES, {"role": "assistant", "content": "so far "}],
    }
    assert rendered(ChatSettings(model_template=template), **request) == "<user>hi</end><assistant>so far "
    trimming = template.replace("m.content", "m.content | trim")
    assert rendered(ChatSettings(model_template=trimming), **request) == "<user>hi</end><assistant>so far"


REFUSED: list[dict[str, object]] = [
    {"tools": []},
    {"tools": {}},
    {"tools": [5]},
    {"tools": [{"type": "web", "function": {"name": "f"}}]},
    {"tools": [{"function": {"description": "no name"}}]},
    {"tools": [{"function": {"name": "f", "parameters": []}}]},
    {"tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "any"},
    {"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}},
    {"tools": [TOOL], "tool_choice": {"type": "tool", "function": {"name": "f"}}},
    {"chat_template": "x"},
    {"chat_template": ""},
    {"chat_template_kwargs": {"chat_template": "x"}},
    {"chat_template_kwargs": []},
    {"chat_template_kwargs": {"conversation": []}},
    {"chat_template_kwargs": {"tools": [1]}},
    {"chat_template_kwargs": {"return_assistant_tokens_mask": True}},
    {"continue_final_message": True},
    {"continue_final_message": True, "add_generation_prompt": True},
    {"add_generation_prompt": None},
    {"add_special_tokens": None},
    {"echo": "maybe"},
    {"documents": [{"n": 1}]},
    {"documents": "d"},
    {"reasoning_effort": "extreme"},
    {"truncate_prompt_tokens": 10_001},
    {"max_tokens": 10_001},
    {"cache_salt": ""},
    {"cache_salt": "a/b"},
    {"cache_salt": "x" * 129},
    {"cache_salt": 5},
    {"kv_transfer_params": 5},
    {"kv_transfer_params": {"prompt_token_ids": []}},
    {"kv_transfer_params": {"prompt_token_ids": [True]}},
    {"kv_transfer_params": {"prompt_token_ids": [1000]}},
]


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: json.dumps(body)[:60])
def test_what_the_engine_refuses_has_no_tokens(body: dict[str, object]) -> None:
    """Each was answered with an error by vLLM 0.32."""
    with pytest.raises(NoTokensError) as absence:
        token_ids(show(max_model_len=10_000), **body)
    assert absence.value.reason is Reason.ENGINE_REFUSES


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only users') }}",
        "{{ messages[5].content }}",
        "{% for x",
        "{{ ''.__class__.__mro__[1].__subclasses__()[0].x.y }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ range(1000000) | list }}",
    ],
)
def test_templates_that_fail_cost_the_request_its_tokens_and_nothing_else(template: str) -> None:
    """They raise, do not compile, or reach for what the sandbox denies."""
    with pytest.raises(NoTokensError) as absence:
        rendered(ChatSettings(model_template=template))
    assert absence.value.reason is Reason.TEMPLATE_ERROR


def test_a_model_without_template_has_no_chats() -> None:
    """The engine refuses them."""
    with pytest.raises(NoTokensError, match="no chat template"):
        rendered(ChatSettings())


def ids(**body: Any) -> str:
    return text_of(token_ids(ChatSettings(model_template="{{ messages[0].content }}", max_model_len=10_000), **body))


def test_special_tokens_come_from_the_template_unless_asked_for() -> None:
    """Chats differ from completions here; a request that lets transformers tokenize gets none either way."""
    assert ids() == "hi"
    assert ids(add_special_tokens=True) == "^hi$"
    assert ids(add_special_tokens=True, chat_template_kwargs={"tokenize": True}) == "hi"


def test_chats_are_cut_like_any_prompt() -> None:
    """On the left."""
    assert ids(truncate_prompt_tokens=1) == "i"


def test_forwarded_ids_replace_the_rendering() -> None:
    """A prefill stage did the work, unless the request holds media or is echoed."""
    forwarded = {"kv_transfer_params": {"prompt_token_ids": [97, 98]}}
    assert ids(**forwarded, truncate_prompt_tokens=1) == "ab"
    assert ids(**forwarded, echo=True) == "hi"
    with pytest.raises(NoTokensError) as absence:
        ids(**forwarded, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}])
    assert absence.value.reason is Reason.MULTIMODAL
