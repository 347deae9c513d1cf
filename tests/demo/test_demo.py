"""`epp demo` on this machine: what it promises to show, how it ends, and that nothing stays behind.

Real Envoy, real epp, simulated pods, real time: about four minutes. The limits leave room for a noisy machine with 2 cores.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.demo.conftest import Demo

RunDemo = Callable[..., Demo]

# Longer than anything takes here; a hang still ends.
pytestmark = pytest.mark.timeout(240)

PLAYING = " requests, "


def prompts(mode: dict[str, Any]) -> dict[tuple[str, int], int]:
    """Length of the prompt of each turn of each conversation."""
    return {(request["conversation"], request["turn"]): request["prompt_tokens"] for request in mode["requests"]}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_precise_routing_pays(run_demo: RunDemo, output: Path, seed: int) -> None:
    """On the same chats: close to one infinite cache, much sooner than round robin, no pod overrun, nearly every hit known beforehand."""
    demo = run_demo(f"--seed={seed}", "--modes=precise,round-robin")
    code, said = demo.end()
    assert code == 0, demo.said
    assert f"seed {seed}" in said
    assert not demo.children()

    result: dict[str, Any] = json.loads((output / "results.json").read_text())
    assert result["seed"] == seed
    precise, robin = result["modes"]["precise"], result["modes"]["round-robin"]
    figures = precise["figures"]
    assert figures["hit_rate"] >= 0.85 * figures["bound_rate"]
    assert figures["ttft_p90_s"] <= 0.6 * robin["figures"]["ttft_p90_s"]
    assert figures["busiest_to_mean"] <= 1.6
    # What the pods stored is what was expected of each request: the parity monitor has no false alarm.
    assert figures["stored"].get("contradicted", 0) <= 0.02 * figures["requests"]
    assert figures["stored"].get("confirmed", 0) >= 0.9 * figures["requests"]

    assert prompts(precise) == prompts(robin)
    requests = precise["requests"]
    different = [request for request in requests if request["predicted_hit_tokens"] != request["actual_hit_tokens"]]
    assert len(different) <= 0.03 * len(requests)
    explained = {difference["request_id"]: difference for difference in precise["differences"]}
    assert explained.keys() == {request["request_id"] for request in different}
    assert all(difference["by"] for difference in explained.values()), explained


@pytest.mark.parametrize(
    ("number", "mode", "moment", "expected"),
    [
        (signal.SIGINT, "precise", "starting 4 pods", 130),
        (signal.SIGINT, "precise", PLAYING, 130),
        (signal.SIGTERM, "round-robin", PLAYING, 143),
    ],
)
def test_an_interrupted_demo_leaves_nothing_running(
    run_demo: RunDemo, number: signal.Signals, mode: str, moment: str, expected: int
) -> None:
    """Ctrl-C ends the pods, epp and Envoy, whether they are being started or at work."""
    demo = run_demo("--quick", f"--modes={mode}")
    demo.wait_for(moment)
    demo.send(number)
    code, _ = demo.end()
    assert code == expected
    assert "every process has ended" in demo.said
    assert not demo.children()


def test_a_killed_demo_takes_its_children_along(run_demo: RunDemo) -> None:
    """Even kill -9 leaves no Envoy behind (with the kernel's help, on Linux)."""
    demo = run_demo("--quick", "--modes=round-robin")
    demo.wait_for(PLAYING)
    assert demo.children()
    demo.send(signal.SIGKILL)
    demo.end()
    deadline = time.monotonic() + 10
    while demo.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not demo.children()


def test_a_part_that_dies_ends_the_demo_with_its_last_words(run_demo: RunDemo) -> None:
    """An Envoy that is gone is an error that says where to look, not a demo that hangs."""
    demo = run_demo("--quick", "--modes=round-robin")
    demo.wait_for(PLAYING)
    envoy = next(pid for pid, command in demo.children().items() if "envoy.json" in command)
    os.kill(envoy, signal.SIGKILL)
    code, _ = demo.end()
    assert code == 1
    assert "envoy ended by itself with code -9" in demo.said
    assert "envoy.log" in demo.said
    assert "Traceback" not in demo.said
    assert not demo.children()


def test_a_taken_port_is_said_at_once(run_demo: RunDemo) -> None:
    """The message names the port and the way out; nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = run_demo("--quick", f"--port={port}")
        code, _ = demo.end()
    assert code == 1
    assert f"--port {port}: cannot listen on 127.0.0.1:{port}" in demo.said
    assert "choose another" in demo.said
    assert "starting" not in demo.said


def test_a_missing_envoy_is_said_with_the_remedy(output: Path) -> None:
    """Without the extra `demo` there is no Envoy; the message says what to install."""
    script = "import sys; sys.modules['envoy'] = None; from epp.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", script, "demo", "--quick", f"--output={output}"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "pip install 'epp[demo]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["--modes=fast"], ["--pods=1"], ["--port=http"]])
def test_bad_arguments_are_refused_with_what_is_expected(run_demo: RunDemo, arguments: list[str]) -> None:
    """Exit code 2 and one line about the argument."""
    demo = run_demo(*arguments)
    code, _ = demo.end()
    assert code == 2
    assert arguments[0].partition("=")[0] in demo.said
