"""Bodies nobody should send: each has tokens or a reason why not, and no client finds a bug that costs it its answer."""

import asyncio
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.domain import InferenceRequest, TokenizedRequest, TokenState
from epp.errors import BadRequestError
from epp.requests import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import Tokenization
from epp.tokenization.anthropic import Manners, read_messages
from epp.tokenization.backend import Prompts
from epp.tokenization.chat import ChatRenderer, ChatSettings
from epp.tokenization.chat_completions import read_chat
from epp.tokenization.completions import completion_prompts
from epp.tokenization.generate import generate_prompts
from epp.tokenization.responses import read_responses
from tests.unit.tokenization.encoders import ENCODER

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}{{ tools | tojson }}"
PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"

# Words that mean something somewhere in a body, so that what is made up gets further than the first check.
KEYS = (
    *("type", "role", "content", "text", "name", "function", "arguments", "tool_calls", "tools", "tool_choice", "parameters", "id"),
    *("status", "summary", "input", "output", "call_id", "namespace", "thinking", "source", "tool", "definition", "reasoning", "uuid"),
    *("input_schema", "cache_salt", "chat_template_kwargs", "kv_transfer_params", "prompt_token_ids", "truncate_prompt_tokens", "features"),
    *("mm_hashes", "mm_placeholders", "image", "offset", "length", "documents", "system", "max_tokens", "budget_tokens", "sampling_params"),
)
WORDS = (
    *("user", "assistant", "system", "developer", "tool", "text", "input_text", "output_text", "function", "function_call", "message"),
    *("reasoning", "custom", "namespace", "tool_use", "tool_result", "tool_addition", "tool_removal", "tool_definition", "tool_reference"),
    *("image_url", "auto", "none", "required", "enabled", "in_progress", "summary_text", "reasoning_text", "web_search", "{}", "", "\x00"),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.just(1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), max_leaves=12
)
PATHS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/messages": "messages",
    "/inference/v1/generate": "token_ids",
    "/generate": "text",
}
PARSERS = RequestParsers(["openai-parser", "anthropic-parser", "vllmhttp-parser", "sglanghttp-parser"])


class Readers:
    """What LocalTokenizer does with a request, without a vocabulary."""

    lora_modules: frozenset[str] = frozenset()

    def __init__(self, template: str) -> None:
        self._settings = ChatSettings(max_model_len=10_000, model_template=template)
        self._renderer = ChatRenderer(self._settings, ENCODER)

    async def start(self, executor: object) -> None: ...

    async def close(self) -> None: ...

    def prompts(self, request: InferenceRequest) -> Prompts:
        body = request.body
        assert body is not None
        match request.api.value:
            case "generate":
                return generate_prompts(body, ENCODER, 10_000)
            case "completions":
                return Prompts(completion_prompts(body, ENCODER, 10_000))
            case "messages":
                chat = read_messages(body, self._settings, Manners(systems_first=False, disabled_effort="none"))
            case "responses":
                chat = read_responses(body, self._settings)
            case _:
                chat = read_chat(body, self._settings)
        return Prompts([self._renderer.token_ids(chat)])


async def tokens(path: str, body: bytes, template: str = TEMPLATE) -> TokenizedRequest | None:
    """None: refused."""
    tokenization = Tokenization("m", Readers(template))
    await tokenization.start()
    try:
        return await awaited(tokenization.tokenize(PARSERS.parse({":path": path}, body)))
    except BadRequestError:
        return None


@settings(max_examples=600)
@given(
    st.sampled_from(sorted(PATHS)), VALUES, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), st.sampled_from((TEMPLATE, PARTS))
)
def test_no_body_finds_a_bug(path: str, prompt: object, more: dict[str, object], template: str) -> None:
    """Any JSON in any place: tokens, or a reason that is not our fault."""
    body = {"max_tokens": 5, "sampling_params": {}, **more, PATHS[path]: prompt, "model": "m"}
    answer = asyncio.run(tokens(path, json.dumps(body).encode(), template))
    assert answer is None or answer.reason != "internal_error", answer.detail


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": {}, "text": "x"}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}),
        ("/v1/responses", {"input": [{"role": "assistant", "content": [{"type": {}, "text": "x"}]}]}),
        (
            "/v1/responses",
            {"input": "x", "tools": [{"type": "web_search", "name": {}}], "tool_choice": {"type": "function", "name": "f"}},
        ),
    ],
)
def test_a_kind_that_is_no_text_is_no_bug(path: str, fields: dict[str, object]) -> None:
    """Found by mutating bodies: each of these was answered with 500."""
    answer = asyncio.run(tokens(path, json.dumps({"model": "m", **fields}).encode()))
    assert answer is not None
    assert answer.reason in ("engine_refuses", "unsupported")


def test_nesting_that_only_reading_survives_costs_the_tokens_alone() -> None:
    """Writing JSON again needs more stack than reading it does."""
    for depth in range(900, 1000):
        nested = "[" * depth + "]" * depth
        call = f'{{"type":"tool_use","id":"1","name":"f","input":{{"a":{nested}}}}}'
        body = f'{{"model":"m","max_tokens":5,"messages":[{{"role":"assistant","content":[{call}]}}]}}'
        answer = asyncio.run(tokens("/v1/messages", body.encode()))
        assert answer is not None
        assert answer.state is TokenState.EXACT or answer.reason in ("unsupported", "unreadable_body", "template_error")


def test_a_bug_of_ours_costs_tokens_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The request is routed, counted under a reason of its own, and a client that repeats it does not fill the log."""

    class Broken(Readers):
        def prompts(self, request: InferenceRequest) -> Prompts:
            raise KeyError(request.model)

    async def run() -> list[str | None]:
        tokenization = Tokenization("m", Broken(TEMPLATE))
        await tokenization.start()
        request = PARSERS.parse({":path": "/v1/completions"}, b'{"model":"m","prompt":"x"}')
        return [(await awaited(tokenization.tokenize(request))).reason for _ in range(3)]

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(run()) == ["internal_error"] * 3
    assert [record.exc_info is not None for record in caplog.records] == [True]
