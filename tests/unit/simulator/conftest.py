"""The recorded model, loaded once."""

import pytest

from epp.simulator.tokenizing import Tokenizer
from tests.unit.simulator.recording import build_model_folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Tokenizer and chat template of the recorded model."""
    return Tokenizer.load(build_model_folder(tmp_path_factory.mktemp("model")))
