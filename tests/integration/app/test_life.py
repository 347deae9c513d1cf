"""The life of a serving process: it starts or says why not, gets ready, drains, and ends with the right exit code."""

import signal
import socket
from pathlib import Path

import pytest

from epp.testing.picker import PickerProcess
from tests.integration.app.rig import config, run_epp


async def test_ctrl_c_ends_it_without_a_trace(endpoints: Path) -> None:
    """A person at a terminal does not wait for a drain."""
    async with PickerProcess([f"--config-text={config(endpoints)}", "--drain-timeout=1h"]) as picker:
        assert await picker.signal(signal.SIGINT) == 0
        assert "Traceback" not in picker.log()


async def test_a_pool_of_none_is_ready(endpoints: Path) -> None:
    """A pool scaled to zero must not keep the picker from starting."""
    endpoints.write_text("endpoints: []")
    async with PickerProcess([f"--config-text={config(endpoints)}"]) as picker:
        assert "ready: 0 endpoints" in picker.log()


async def test_a_tokenizer_that_cannot_be_loaded_holds_nothing_back(endpoints: Path) -> None:
    """The picker gets ready, says what is missing, and routes without tokens."""
    producer: dict[str, object] = {"type": "token-producer", "parameters": {"modelName": "m", "local": {"path": "no-such-folder"}}}
    async with PickerProcess([f"--config-text={config(endpoints, producer)}"]) as picker:
        assert "no-such-folder: no such folder" in picker.log()


def test_bad_configuration_ends_with_2_and_a_sentence(endpoints: Path) -> None:
    """Place and remedy, no stack trace."""
    code, said = run_epp("--secure-serving=false", f"--config-text={config(endpoints, {'type': 'random-pickr'})}")

    assert code == 2
    assert "plugins[1].type: unknown 'random-pickr', did you mean 'random-picker'?" in said
    assert "Traceback" not in said


def test_a_bad_endpoints_file_is_fatal_at_start(endpoints: Path) -> None:
    """The line, the value and what is expected."""
    endpoints.write_text("endpoints:\n  - {name: a, address: 10.0.0.300, port: 8000}\n")

    code, said = run_epp("--secure-serving=false", "--metrics-port=0", f"--config-text={config(endpoints)}")

    assert code == 2
    assert "line 2: address `10.0.0.300` is not an IP address" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("flag", ["--grpc-port", "--grpc-health-port", "--metrics-port"])
def test_a_taken_port_is_named_with_its_flag(endpoints: Path, flag: str) -> None:
    """Nothing is left half started."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        ports = {"--grpc-port": 0, "--grpc-health-port": 0, "--metrics-port": 0, flag: taken.getsockname()[1]}
        code, said = run_epp(
            "--secure-serving=false", f"--config-text={config(endpoints)}", *(f"{name}={port}" for name, port in ports.items())
        )

    assert code == 2
    assert f"epp: {flag}" in said
    assert "Traceback" not in said
