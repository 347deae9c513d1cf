"""Request bodies that vLLM refuses are refused, with the field's name."""

from typing import Any

import pytest

from epp.simulator import bodies
from epp.simulator.errors import ApiError

USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "role"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "text parts"),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "tool_calls"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function"}]}, "name"),
        ({"continue_final_message": True}, "add_generation_prompt"),
        ({"chat_template": "x"}, "template"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"model": 1}, "model"),
        ({"n": 2}, "one choice"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"cache_salt": "a/b"}, "cache_salt"),
        ({"vllm_xargs": "full"}, "vllm_xargs"),
    ],
)
def test_refused_chats(change: dict[str, Any], word: str) -> None:
    """The message says what is wrong."""
    with pytest.raises(ApiError, match=word):
        bodies.chat({"model": "tiny", "messages": [USER], **change})


@pytest.mark.parametrize("prompt", [None, "", [], 5, [True], ["a", 1], [[1], ["a"]], [[]]])
def test_refused_prompts(prompt: object) -> None:
    """A prompt is text, ids, or a list of one of these, and not empty."""
    with pytest.raises(ApiError, match="prompt"):
        bodies.completion({"model": "tiny", "prompt": prompt})


def test_invalid_tool_arguments_become_an_empty_object() -> None:
    """As in vLLM, arguments that are no JSON object do not stop the chat."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{oops"}}
    (prompt,) = bodies.chat({"model": "m", "messages": [USER, {"role": "assistant", "tool_calls": [call]}]}).prompts
    assert not isinstance(prompt, str | list)
    assert prompt.messages[1]["tool_calls"] == [{**call, "function": {"name": "f", "arguments": {}}}]
