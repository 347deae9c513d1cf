"""What kubelet and Envoy hear from a real process, on both ports, from its start to its end (spec/protocol.md 5.6)."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from epp import app
from epp.config import flags as command_line
from epp.testing.picker import PickerProcess, free_ports, is_serving
from epp.testing.waiting import eventually
from tests.integration.app.rig import EXT_PROC, TRANSPORTS, config, health

PRECISE = "precise-prefix-cache-producer"
READINESS = ("", "readiness", EXT_PROC)
OTHERS = ("inference-extension", "something-else")
SERVICES = (*READINESS, *OTHERS, "liveness")


@contextlib.contextmanager
def mute_endpoint(endpoints: Path) -> Iterator[None]:
    """An endpoint that takes connections to its KV events and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        labels = f'{{epp.internal/kv-events-port: "{port}", epp.internal/kv-replay-port: "{port}"}}'
        endpoints.write_text(f'endpoints: [{{name: mute, address: 127.0.0.1, port: "8000", labels: {labels}}}]')
        yield


def learning(endpoints: Path) -> str:
    """A picker that wants to know what its endpoints hold."""
    producer: dict[str, object] = {"type": PRECISE, "parameters": {"kvEventsConfig": {"discoverPods": True}}}
    tokens: dict[str, object] = {"type": "token-producer", "parameters": {"modelName": "m", "vllm": {"url": "http://127.0.0.1:9"}}}
    return config(endpoints, tokens, producer, {"type": "random-picker"}, watch=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_from_start_to_end(endpoints: Path, transport: str) -> None:
    """Alive all the time; ready once the first replays are over; neither, but alive, while it drains."""
    flags = [f"--config-text={learning(endpoints)}", f"--transport={transport}", "--drain-timeout=1h"]
    with mute_endpoint(endpoints):
        async with PickerProcess(flags, started="liveness") as picker:

            async def says(serving: tuple[str, ...]) -> None:
                expected = {service: "SERVING" if service in serving else "NOT_SERVING" for service in SERVICES}
                for port in (picker.grpc_port, picker.health_port):
                    assert await health(port, *SERVICES) == expected

            await says((*OTHERS, "liveness"))

            endpoints.write_text("endpoints: []")
            await eventually(lambda: "ready: 0 endpoints" in picker.log())
            await says(SERVICES)

            picker.signal(signal.SIGTERM)
            await eventually(lambda: "draining" in picker.log())
            await says(("liveness",))


async def test_an_endpoint_that_stays_mute(endpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is not waited for longer than a limit, here a short one."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(app, "SETTLE_LIMIT_S", 0.1)
    ports = zip(("--grpc-port", "--grpc-health-port", "--metrics-port"), probed := free_ports(3), strict=True)
    arguments = [f"--config-text={learning(endpoints)}", "--secure-serving=false", *(f"{flag}={port}" for flag, port in ports)]
    with mute_endpoint(endpoints):
        picker = app.App(command_line.parse(arguments))
        serving = asyncio.create_task(picker.serve())
        await eventually(lambda: is_serving(probed[1]))
        assert "some endpoints have not told what they hold" in caplog.text
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await picker.close()


async def test_a_start_says_how_far_caches_are_known(endpoints: Path) -> None:
    """Also where every endpoint had told before the tokenizer was loaded."""
    endpoints.write_text("endpoints: []")
    async with PickerProcess([f"--config-text={learning(endpoints)}"]) as picker:
        assert "0 of 0 endpoints have told what they hold: 0 blocks" in picker.log()


async def test_sigterm_before_it_is_ready(endpoints: Path) -> None:
    """A start can be taken back."""
    with mute_endpoint(endpoints):
        async with PickerProcess([f"--config-text={learning(endpoints)}"], started="liveness") as picker:
            assert await picker.signal(signal.SIGTERM) == 0
            assert "Traceback" not in picker.log()


async def test_a_render_service_that_is_down_holds_nothing_back(endpoints: Path) -> None:
    """Ready without it: it may come later, and requests are routed by load until then."""
    tokens: dict[str, object] = {
        "type": "token-producer",
        "parameters": {"modelName": "m", "vllm": {"url": f"http://127.0.0.1:{free_ports(1)[0]}"}},
    }
    async with PickerProcess([f"--config-text={config(endpoints, tokens)}"]) as picker:
        assert await health(picker.health_port, *READINESS) == dict.fromkeys(READINESS, "SERVING")
