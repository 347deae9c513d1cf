"""Chats and completions to the token ids vLLM rendered, and answers that survive the next turn."""

from typing import Any

import pytest

from epp.simulator import bodies
from epp.simulator.answers import AnswerWriter
from epp.simulator.conversations import Conversation, conversation
from epp.simulator.errors import ApiError, SimulatorError
from epp.simulator.tokenizing import Tokenizer
from tests.unit.simulator import recording

CHATS = [request for request in recording.requests() if request["path"] == "/v1/chat/completions"]
COMPLETIONS = [request for request in recording.requests() if request["path"] == "/v1/completions"]


@pytest.mark.parametrize("request_", CHATS, ids=lambda request: request["name"])
def test_chats(request_: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Every recorded chat becomes the recorded token ids."""
    ask = bodies.chat(request_["body"])
    (prompt,) = ask.prompts
    assert isinstance(prompt, Conversation)
    assert [tokenizer.chat(prompt)] == recording.rendered(request_)


@pytest.mark.parametrize("request_", COMPLETIONS, ids=lambda request: request["name"])
def test_completions(request_: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Every recorded completion becomes the recorded token ids, batches and truncation included."""
    ask = bodies.completion(request_["body"])
    ids = [
        ask.truncated(tokenizer.text(prompt, add_special_tokens=ask.add_special_tokens) if isinstance(prompt, str) else prompt, 16384)
        for prompt in ask.prompts
        if not isinstance(prompt, Conversation)
    ]
    assert ids == recording.rendered(request_)


def test_an_answer_sent_back_is_the_same_tokens(tokenizer: Tokenizer) -> None:
    """The next turn's prompt begins with this turn's prompt and answer, token for token, so its blocks are found."""
    writer = AnswerWriter(tokenizer.vocabulary(), seed=1)
    messages: list[dict[str, object]] = [{"role": "user", "content": "Hello"}]
    for _ in range(3):
        prompt = tokenizer.chat(conversation({"messages": messages}))
        answer = writer.write(prompt, max_tokens=500, ignore_eos=False)
        text = "".join(map(writer.text, answer.tokens))
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Go on"}]
        following = tokenizer.chat(conversation({"messages": messages}))
        assert following[: len(prompt) + len(answer.tokens)] == [*prompt, *answer.tokens]
        assert answer.finish_reason == "stop"


def test_a_template_that_refuses_is_the_clients_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a template cannot render is 400, with its reason."""
    folder = recording.build_model_folder(tmp_path_factory.mktemp("strict"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    with pytest.raises(ApiError, match="no users here"):
        Tokenizer.load(folder).chat(conversation({"messages": [{"role": "user", "content": "x"}]}))


def test_a_folder_without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The message names folder and flag."""
    with pytest.raises(SimulatorError, match="--model-path"):
        Tokenizer.load(tmp_path_factory.mktemp("empty"))
