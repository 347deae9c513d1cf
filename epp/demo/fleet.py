"""One mode's processes: simulated pods, the picker if the mode has one, and a real Envoy in front. Started fresh, ended always.

Everything is what a user runs: `epp simulate`, `epp` with its flags, Envoy with the bootstrap we ship. The system chooses the
ports, except that of Envoy's listener where the user named one. Used by `session` on its event loop.
"""

import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from epp import names
from epp.demo import configs
from epp.demo.processes import DemoError, Processes
from epp.demo.records import Mode
from epp.testing import bootstrap, envoy
from epp.testing.picker import free_ports, is_serving

HOST = "127.0.0.1"
READY_TIMEOUT_S = 60.0
_EPP = (sys.executable, "-P", "-m", "epp")  # -P: not the epp of the working folder


@dataclass(frozen=True, slots=True)
class Settings:
    """What every mode's fleet has in common. Latencies are in the range of an 8B model on one GPU (spec/kv.md 6.3)."""

    model_folder: Path
    model: str = "qwen2.5-demo"
    pods: int = 4
    port: int = 0
    """Envoy's listener; 0: the system chooses."""
    block_size: int = 16
    num_blocks: int = 1000
    max_model_len: int = 8192
    prefill_us_per_token: float = 330.0
    step_ms: float = 20.0
    seed: int = 0
    metrics_interval: str = "50ms"
    """How often epp reads a pod's /metrics."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One simulated pod, from the endpoints file."""

    name: str
    http: str
    """ "host:port"."""
    replay: str
    """ "host:port" of its replay socket."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that serves."""

    address: str
    """Base URL of Envoy's listener."""
    pods: Sequence[Pod]
    processes: Processes
    decision_log: Path
    """Complete when the picker has ended; absent in a mode without one."""
    metrics: str | None = None
    """URL of the picker's metrics; None without a picker."""


def check_port(port: int) -> None:
    """Raises DemoError where somebody listens on it already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoError(
                f"--port {port}: cannot listen on {HOST}:{port} ({error.strerror}); choose another, or 0 for a free one"
            ) from None


@contextlib.asynccontextmanager
async def start(mode: Mode, settings: Settings, folder: Path) -> AsyncIterator[Fleet]:
    """A fleet of this mode, its files in `folder`; everything has ended when the block is left. Raises EppError where it cannot start."""
    envoy.binary()  # known missing before anything is started
    async with Processes(folder) as processes:
        pods = await _start_pods(processes, settings, folder)
        yield await route(processes, mode, settings, folder, pods)


async def route(
    processes: Processes, mode: Mode, settings: Settings, folder: Path, pods: Sequence[Pod], *, tell_endpoint: bool = False
) -> Fleet:
    """Start what stands before the pods: Envoy, and the picker if the mode has one, which reads `folder`/endpoints.yaml.

    `tell_endpoint`: Envoy tells the client which address answered, for pods that do not tell their names themselves.
    """
    log = folder / "decisions.jsonl"
    grpc_port, metrics = await _start_picker(processes, mode, settings, folder, log) if mode.has_picker else (None, None)
    address = await _start_envoy(processes, settings, folder, pods, grpc_port, tell_endpoint=tell_endpoint)
    return Fleet(address, pods, processes, log, metrics)


async def _start_pods(processes: Processes, settings: Settings, folder: Path) -> list[Pod]:
    file = folder / "endpoints.yaml"
    file.unlink(missing_ok=True)
    child = await processes.start(
        "pods",
        (
            *_EPP,
            "simulate",
            f"--pods={settings.pods}",
            f"--model-path={settings.model_folder}",
            f"--model={settings.model}",
            f"--endpoints-file={file}",
            f"--block-size={settings.block_size}",
            f"--num-blocks={settings.num_blocks}",
            f"--max-model-len={settings.max_model_len}",
            f"--prefill-us-per-token={settings.prefill_us_per_token}",
            f"--step-ms={settings.step_ms}",
            f"--seed={settings.seed}",
        ),
    )

    async def endpoints() -> list[Pod] | None:
        return read_endpoints(file) if file.exists() else None

    return await processes.wait_ready(child, endpoints, READY_TIMEOUT_S)


def read_endpoints(file: Path) -> list[Pod]:
    """The pods of an endpoints file the simulator wrote: YAML whose entries are JSON."""
    pods = []
    for line in file.read_text().splitlines():
        text = line.strip()
        if text.startswith("- "):
            entry = msgspec.json.decode(text[2:], type=_Endpoint)
            replay = entry.labels[names.KV_REPLAY_PORT_LABEL]
            pods.append(Pod(entry.name, f"{entry.address}:{entry.port}", f"{entry.address}:{replay}"))
    return pods


class _Endpoint(msgspec.Struct):
    name: str
    address: str
    port: str
    labels: dict[str, str]


async def _start_picker(processes: Processes, mode: Mode, settings: Settings, folder: Path, log: Path) -> tuple[int, str]:
    """Returns the port of ext_proc and the URL of the metrics."""
    config = folder / "epp.yaml"
    config.write_text(
        configs.render(
            mode,
            endpoints=folder / "endpoints.yaml",
            model=settings.model,
            model_folder=settings.model_folder,
            block_size=settings.block_size,
        )
    )
    grpc_port, health_port, metrics_port = free_ports(3)
    child = await processes.start(
        "epp",
        (
            *_EPP,
            f"--config-file={config}",
            f"--grpc-port={grpc_port}",
            f"--grpc-health-port={health_port}",
            f"--metrics-port={metrics_port}",
            f"--refresh-metrics-interval={settings.metrics_interval}",
            "--secure-serving=false",
            "--drain-timeout=0s",
            f"--decision-log={log}",
        ),
    )
    # Ready means: tokenizer proven, endpoints known, first replays settled.
    await processes.wait_ready(child, lambda: _serving(health_port), READY_TIMEOUT_S)
    return grpc_port, f"http://{HOST}:{metrics_port}/metrics"


async def _serving(health_port: int) -> bool | None:
    return await is_serving(health_port) or None


async def _start_envoy(
    processes: Processes, settings: Settings, folder: Path, pods: Sequence[Pod], grpc_port: int | None, *, tell_endpoint: bool
) -> str:
    """Returns the base URL of the listener."""
    if grpc_port is None:
        addresses = [(host, int(port)) for host, _, port in (pod.http.rpartition(":") for pod in pods)]
        configuration = bootstrap.round_robin(
            listener=settings.port, admin=0, endpoints=addresses, keep_request_id=True, tell_endpoint=tell_endpoint
        )
    else:
        configuration = bootstrap.standalone(
            listener=settings.port, admin=0, epp=grpc_port, keep_request_id=True, tell_endpoint=tell_endpoint
        )
    file, admin_address = folder / "envoy.json", folder / "envoy.admin"
    file.write_text(json.dumps(configuration, indent=1))
    admin_address.unlink(missing_ok=True)
    child = await processes.start("envoy", envoy.command(file, admin_address))
    async with aiohttp.ClientSession() as session:
        port = await processes.wait_ready(child, lambda: envoy.listener_port(session, admin_address), READY_TIMEOUT_S)
    return f"http://{HOST}:{port}"
