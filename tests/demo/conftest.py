"""Runs `epp demo` as a person does, and looks for what it left behind."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Demo:
    """One running `epp demo`, with its output as it comes."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self.output = output
        self._process = subprocess.Popen(
            [sys.executable, "-m", "epp", "demo", f"--output={output}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        """Standard error so far."""

    def wait_for(self, text: str) -> None:
        """Return when standard error says so; fails when the demo ends without."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said += line
            if text in line:
                return
        pytest.fail(f"the demo ended with code {self._process.wait()} before it said {text!r}:\n{self.said}")

    def send(self, number: signal.Signals) -> None:
        """Signal the demo alone."""
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and standard output, when it has ended."""
        stdout, stderr = self._process.communicate()
        self.said += stderr
        return self._process.returncode, stdout

    def children(self) -> dict[int, str]:
        """Command lines of all processes that mention the output folder, except the demo itself."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self._process.pid:
                try:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue  # it ended meanwhile
                if str(self.output) in command:
                    found[int(folder.name)] = command
        return found

    def stop(self) -> None:
        """End it, whatever a test left."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate()


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all runs, so that the model folder is made once."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def run_demo(output: Path) -> Iterator[Callable[..., Demo]]:
    """Starts a demo with these arguments; none outlives its test."""
    started: list[Demo] = []

    def run(*arguments: str) -> Demo:
        started.append(Demo(output, *arguments))
        return started[-1]

    yield run
    for demo in started:
        demo.stop()
