"""Configurations for a real epp process, and peers of it: a probe, and Envoy with one request."""

import json
import ssl
import subprocess
import sys
from pathlib import Path

from epp._proto import ext_proc_pb2 as pb
from epp._proto import health_pb2
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually
from tests.integration.server.h2_peer import Peer, PeerStream, connect, framed
from tests.integration.server.messages import request_body, request_headers

TRANSPORTS = ("fast", "grpc")
EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"

BODY = b'{"model": "m", "prompt": "hello"}'
REST = framed(request_body(BODY, end_of_stream=True).SerializeToString())
"""The message that makes `request_headers` a whole request."""


def config(endpoints: Path, *plugins: dict[str, object], watch: bool = False) -> str:
    """File discovery and more plugins."""
    discovery = {"type": "file-discovery", "parameters": {"path": str(endpoints), "watchFile": watch}}
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": [discovery, *(plugins or [{"type": "random-picker"}])],
            "dataLayer": {"injectDefaults": False, "discovery": {"pluginRef": "file-discovery"}},
        }
    )


def run_epp(*flags: str) -> tuple[int, str]:
    """An epp that is expected to end by itself: its exit code and what it said."""
    done = subprocess.run([sys.executable, "-m", "epp", *flags], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def client_tls() -> ssl.SSLContext:
    """As gateways connect: h2, and whatever certificate there is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def health(port: int, *services: str, tls: bool = False) -> dict[str, str]:
    """What grpc.health.v1 says of each service."""
    async with connect(port, tls=client_tls() if tls else None) as peer:
        answers = {}
        for service in services:
            call = peer.open("/grpc.health.v1.Health/Check")
            call.send(framed(health_pb2.HealthCheckRequest(service=service).SerializeToString()), end=True)
            assert await call.ended() == (0, "")
            status = health_pb2.HealthCheckResponse.FromString(call.body[5:]).status
            answers[service] = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        return answers


async def draining(picker: PickerProcess) -> None:
    """Return once the picker has told probes so."""

    async def told() -> bool:
        return await health(picker.health_port, "") == {"": "NOT_SERVING"}

    await eventually(told)


def half_a_request(peer: Peer) -> PeerStream:
    """Headers only; `REST` is missing."""
    return peer.request(request_headers())


async def routed(stream: PeerStream) -> str:
    """Where the picker sent it, once it has said so."""
    await eventually(lambda: bool(stream.replies()) or stream.status is not None)
    [headers] = [reply for reply in stream.replies() if reply.WhichOneof("response") == "request_headers"]
    return _destination(headers)


def _destination(reply: pb.ProcessingResponse) -> str:
    options = reply.request_headers.response.header_mutation.set_headers
    [value] = [option.header.raw_value for option in options if option.header.key == "x-gateway-destination-endpoint"]
    return value.decode()
