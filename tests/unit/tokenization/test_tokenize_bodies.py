"""What /tokenize is asked in place of the render endpoints (spec/kv.md 4.8)."""

from typing import Any

import pytest

from epp.domain import Api
from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.tokenize_bodies import tokenize_bodies

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("api", "body", "asked"),
    [
        (Api.CHAT, {"messages": HI, "temperature": 1}, [{"messages": HI}]),
        (
            Api.CHAT,
            {"messages": HI, "tools": [1], "add_generation_prompt": False},
            [{"messages": HI, "add_generation_prompt": False, "tools": [1]}],
        ),
        (
            Api.CHAT,
            {"messages": HI, "reasoning_effort": "none", "documents": [], "chat_template_kwargs": {"x": 1}},
            [{"messages": HI, "chat_template_kwargs": {"x": 1, "enable_thinking": False, "reasoning_effort": "none", "documents": []}}],
        ),
        (
            Api.CHAT,
            {"messages": HI, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": None}},
            [{"messages": HI, "chat_template_kwargs": {"enable_thinking": None, "reasoning_effort": "low"}}],
        ),
        (
            Api.CHAT,
            {"messages": [{"role": "assistant", "reasoning_content": "r"}, {"reasoning_content": "old", "reasoning": "r"}, 5]},
            [{"messages": [{"role": "assistant", "reasoning": "r"}, {"reasoning_content": "old", "reasoning": "r"}, 5]}],
        ),
        (
            Api.COMPLETIONS,
            {"prompt": ["a", "b"]},
            [{"prompt": "a", "add_special_tokens": True}, {"prompt": "b", "add_special_tokens": True}],
        ),
        (Api.COMPLETIONS, {"prompt": "a", "add_special_tokens": False}, [{"prompt": "a", "add_special_tokens": False}]),
    ],
)
def test_one_body_a_prompt(api: Api, body: dict[str, Any], asked: list[dict[str, Any]]) -> None:
    """Missing fields are imitated by template arguments."""
    assert tokenize_bodies(api, body, "m") == [{"model": "m", **one} for one in asked]


@pytest.mark.parametrize(
    ("api", "body", "reason"),
    [
        (Api.CHAT, {"messages": HI, "truncate_prompt_tokens": 5}, Reason.UNSUPPORTED),
        (Api.CHAT, {"messages": HI, "kv_transfer_params": {"prompt_token_ids": [1]}}, Reason.UNSUPPORTED),
        (Api.CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Reason.MULTIMODAL),
        (Api.CHAT, {"messages": HI, "tools": []}, Reason.ENGINE_REFUSES),
        (Api.CHAT, {"messages": HI, "tools": [1], "tool_choice": "none"}, Reason.UNSUPPORTED),
        (Api.COMPLETIONS, {"prompt": ""}, Reason.ENGINE_REFUSES),
        (Api.COMPLETIONS, {"prompt": "a", "suffix": "b"}, Reason.UNSUPPORTED),
        (Api.RESPONSES, {"input": "a"}, Reason.UNSUPPORTED),
        (Api.MESSAGES, {"messages": HI}, Reason.UNSUPPORTED),
    ],
)
def test_what_tokenize_cannot_say_has_no_tokens(api: Api, body: dict[str, Any], reason: Reason) -> None:
    """Rather than others than the engine's."""
    with pytest.raises(NoTokensError) as absence:
        tokenize_bodies(api, body, "m")
    assert absence.value.reason is reason
