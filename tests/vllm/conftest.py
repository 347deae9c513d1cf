"""Each engine is started once, in turn: tests of one engine come together, whatever file they are in."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from epp.tokenization import LocalTokenizer, Tokenization
from tests.vllm.engines import ENGINES, Engine, Server, model_folder, serving
from tests.vllm.launch import MODEL


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
    # The tests are synchronous; the loop only owns the server's processes.
    with asyncio.Runner() as runner:
        runner.run(tokenization.start())
        assert tokenization.failed is None
        up = serving(engine, folder, base)
        server = runner.run(up.__aenter__())
        try:
            yield Pair(engine, server, tokenization)
        finally:
            runner.run(up.__aexit__(None, None, None))


_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line that stands at the end of the run."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was measured."""
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)
