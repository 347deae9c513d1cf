"""Health, and the ports the server listens on."""

import socket

import grpc
import grpc.aio
import pytest

from epp._proto import health_pb2 as pb
from epp.errors import ConfigError
from tests.integration.server.rig import Rig

STATUS = pb.HealthCheckResponse


async def check(channel: grpc.aio.Channel, request: bytes) -> pb.HealthCheckResponse:
    return STATUS.FromString(await channel.unary_unary("/grpc.health.v1.Health/Check")(request))


async def test_health_on_both_ports(rig: Rig) -> None:
    """Probes may use either port (D10), and an unknown service is a status, not an error."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.server.health_port}") as probes:
        for channel in (rig.channel, probes):
            for service, status in (("", STATUS.SERVING), ("liveness", STATUS.NOT_SERVING), ("other", STATUS.SERVICE_UNKNOWN)):
                request = pb.HealthCheckRequest(service=service).SerializeToString()
                assert (await check(channel, request)).status == status
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await probes.unary_unary("/envoy.service.ext_proc.v3.ExternalProcessor/Process")(b"")
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_health_list_and_watch(rig: Rig) -> None:
    """List names the service a data plane probes; Watch is not offered."""
    listed = pb.HealthListResponse.FromString(await rig.channel.unary_unary("/grpc.health.v1.Health/List")(b""))
    assert list(listed.statuses) == ["envoy.service.ext_proc.v3.ExternalProcessor"]
    assert await rig.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"").code() == grpc.StatusCode.UNIMPLEMENTED


async def test_garbage_probe(rig: Rig) -> None:
    """A probe that is no HealthCheckRequest is told so."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await check(rig.channel, b"\xff")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("taken", "flag"), [("port", "--grpc-port"), ("health_port", "--grpc-health-port")])
async def test_a_taken_port(rig: Rig, taken: str, flag: str) -> None:
    """A second server says which flag, which port and what to do; and leaves no port open behind it."""
    port = rig.server.port
    second = rig.new_server(port, None) if taken == "port" else rig.new_server(0, port)
    with pytest.raises(
        ConfigError, match=rf"^{flag}={port}: cannot listen on 127\.0\.0\.1:{port} \(Address already in use\): free the port"
    ):
        await second.start()
    await second.stop(0)


async def test_a_stopped_server_frees_its_ports(rig: Rig) -> None:
    """The next one can take them at once."""
    await rig.server.stop(0)
    second = rig.new_server(rig.server.port, rig.server.health_port)
    await second.start()
    assert (second.port, second.health_port) == (rig.server.port, rig.server.health_port)
    await second.stop(0)


async def test_both_address_families(rig: Rig) -> None:
    """Every interface means those of IPv4 and IPv6."""
    server = rig.new_server(0, None, host="0.0.0.0")
    await server.start()
    try:
        for host in ("127.0.0.1", "[::1]") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            async with grpc.aio.insecure_channel(f"{host}:{server.port}") as channel:
                assert (await check(channel, b"")).status == STATUS.SERVING
    finally:
        await server.stop(0)


async def test_a_host_that_is_none(rig: Rig) -> None:
    """The error names the flag, the address and the reason."""
    with pytest.raises(ConfigError, match=r"^--grpc-port=0: cannot listen on 192\.0\.2\.1:0 \(Cannot assign requested address\)"):
        await rig.new_server(0, None, host="192.0.2.1").start()
