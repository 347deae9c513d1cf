"""Each engine is started once, in turn: tests of one engine come together, whatever file they are in."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from epp.tokenization import LocalTokenizer, Tokenization
from tests.vllm.engines import ENGINES, MODEL, Engine, Server, model_folder, serving


@dataclass(frozen=True)
class Pair:
    """A real engine, and epp with the same settings."""

    engine: Engine
    server: Server
    tokenization: Tokenization


@pytest.fixture(scope="session", params=ENGINES, ids=lambda engine: engine.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both up."""
    engine: Engine = request.param
    base: Path = tmp_path_factory.mktemp(engine.name)
    folder = model_folder(engine, base / "model")
    tokenization = Tokenization(MODEL, LocalTokenizer(engine.config(folder)))
    asyncio.run(tokenization.start())
    assert tokenization.failed is None
    with serving(engine, folder, base / "vllm.log") as server:
        yield Pair(engine, server, tokenization)
