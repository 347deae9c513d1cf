"""`epp simulate` as a process: what it prints, writes and returns."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from epp import names

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def simulate(model_folder: Path, *arguments: object) -> asyncio.subprocess.Process:
    """Start the command with two pods."""
    fixed = ("-m", "epp", "simulate", "--pods", "2", "--model", "tiny", "--model-path", str(model_folder))
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *fixed, *map(str, arguments), stdout=pipe, stderr=pipe)


async def lines_until_ready(process: asyncio.subprocess.Process) -> list[str]:
    """What it prints until it is ready."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(100):
        async for line in process.stdout:
            lines.append(line.decode())
            if lines[-1].startswith("ready"):
                break
    return lines


async def test_serves_until_told_to_stop(model_folder: Path, tmp_path: Path) -> None:
    """One line a pod, one that says ready, an endpoints file for file-discovery; SIGTERM ends it with 0 and without noise."""
    file = tmp_path / "endpoints.yaml"
    process = await simulate(model_folder, "--endpoints-file", file)
    lines = await lines_until_ready(process)
    assert [line.split()[0] for line in lines] == ["pod-0", "pod-1", "ready:"]
    entries = YAML(typ="safe").load(file.read_text())["endpoints"]
    assert [(entry["name"], entry["namespace"], entry["address"]) for entry in entries] == [
        ("pod-0", "default", "127.0.0.1"),
        ("pod-1", "default", "127.0.0.1"),
    ]
    assert isinstance(entries[0]["port"], str)
    assert set(entries[0]["labels"]) == {names.KV_EVENTS_PORT_LABEL, names.KV_REPLAY_PORT_LABEL}
    process.send_signal(signal.SIGTERM)
    _, noise = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, noise) == (0, b"")


async def test_a_taken_port(model_folder: Path) -> None:
    """One sentence with port and remedy, exit code 1, no traceback, before the model is even loaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await simulate(model_folder, "--base-port", min(port, 65_000))
        output, error = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, output) == (1, b"")
    assert error.count(b"\n") == 1
    assert str(port).encode() in error
    assert b"--base-port" in error


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--faults", '{"drop": {"share": 2}}'], 2, [b"--faults", b"drop.share"]),
        (["--faults", '{"silence": "host"}'], 1, [b"--faults", b"--dev-mode"]),
        (["--events-topic", "kv@{ip}"], 1, [b"--events-topic", b"{host}"]),
        (["--connect-events", "picker"], 1, [b"picker", b"--connect-events", b"tcp://"]),
    ],
)
async def test_flags_that_mean_nothing(model_folder: Path, arguments: list[str], code: int, words: list[bytes]) -> None:
    """One sentence names the flag and the place in it, or the remedy."""
    process = await simulate(model_folder, *arguments)
    _, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == code
    last = error.splitlines()[-1]
    assert all(word in last for word in words)


async def test_a_cache_smaller_than_the_context(model_folder: Path) -> None:
    """Flags that contradict each other are named."""
    process = await simulate(model_folder, "--num-blocks", 10)
    _, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"--max-model-len" in error
