"""The parts of a rig and how it is configured; the fixtures that build one are in conftest.py."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from epp.testing.envoy import EnvoyProcess
from epp.testing.model_server import ModelServer
from epp.testing.picker import PickerProcess


@dataclass(slots=True)
class Rig:
    """One Envoy with one picker in front of model servers."""

    envoy: EnvoyProcess
    picker: PickerProcess
    servers: Sequence[ModelServer]
    client: aiohttp.ClientSession
    endpoints_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.envoy.port}"

    async def running(self) -> float:
        """Requests the picker believes to be in flight."""
        return sum(value for name, value in (await self.picker.metrics()).items() if name.startswith("llm_d_epp_request_running"))


MakeRig = Callable[..., AbstractAsyncContextManager[Rig]]


def write_endpoints(file: Path, addresses: Sequence[str]) -> None:
    """An endpoints file with these "ip:port"."""
    pairs = [address.rsplit(":", 1) for address in addresses]
    file.write_text(json.dumps({"endpoints": [{"name": f"pod-{i}", "address": ip, "port": port} for i, (ip, port) in enumerate(pairs)]}))


def config(endpoints: Path) -> str:
    """Least in-flight requests first, ties at random."""
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": [
                {"type": "file-discovery", "parameters": {"path": str(endpoints), "watchFile": True}},
                {"type": "active-request-scorer"},
            ],
            "dataLayer": {"injectDefaults": False, "discovery": {"pluginRef": "file-discovery"}},
            "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "active-request-scorer"}]}],
        }
    )
