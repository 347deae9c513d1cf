"""TLS as a gateway meets it: on by default, from files, followed; and what is wrong with it is said at start."""

import asyncio
import signal
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from epp.server.status import Status
from epp.testing.picker import PickerProcess
from epp.testing.waiting import eventually
from tests.integration.app.rig import EXT_PROC, REST, TRANSPORTS, client_tls, config, half_a_request, health, routed, run_epp
from tests.integration.server.h2_peer import connect
from tests.integration.tls.test_certificates import NOW, A, B, write

SECURE = "--secure-serving=true"  # the default; the fixture says otherwise


async def shown(port: int) -> str:
    """Whose certificate a new connection gets."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls())
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_without_files(endpoints: Path, transport: str) -> None:
    """A request is routed over TLS with a certificate made at start; health is there too, and in plaintext beside it."""
    async with (
        PickerProcess([SECURE, f"--config-text={config(endpoints)}", f"--transport={transport}"]) as picker,
        connect(picker.grpc_port, tls=client_tls()) as peer,
    ):
        stream = half_a_request(peer)
        stream.send(REST, end=True)
        assert await routed(stream) == "127.0.0.1:8000"
        assert await stream.ended() == (Status.OK, "")
        assert f"serves on port {picker.grpc_port} with a generated certificate for localhost" in picker.log()
        assert await health(picker.grpc_port, EXT_PROC, tls=True) == {EXT_PROC: "SERVING"}
        assert await health(picker.health_port, EXT_PROC) == {EXT_PROC: "SERVING"}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_certificate_is_renewed(endpoints: Path, tmp_path: Path, transport: str) -> None:
    """New connections see the new one, the stream that was open ends well, and when it expires can be seen in metrics."""
    folder = tmp_path / "tls"
    write(folder, A.certificate, A.key)
    files = [f"--cert-path={folder}", "--enable-cert-reload"]
    async with (
        PickerProcess([SECURE, *files, f"--config-text={config(endpoints)}", f"--transport={transport}"]) as picker,
        connect(picker.grpc_port, tls=client_tls()) as peer,
    ):
        stream = half_a_request(peer)
        assert await shown(picker.grpc_port) == "CN=a.example,O=epp"
        write(folder, B.certificate, B.key)

        async def renewed() -> bool:
            return await shown(picker.grpc_port) == "CN=b.example,O=epp"

        await eventually(renewed)
        stream.send(REST, end=True)
        assert await routed(stream) == "127.0.0.1:8000"
        assert await stream.ended() == (Status.OK, "")
        assert B.expires_at in (await picker.metrics()).values()


async def test_version_and_suites(endpoints: Path) -> None:
    """Only what was asked for is spoken."""
    flags = ["--transport=fast", "--tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]
    async with PickerProcess([SECURE, f"--config-text={config(endpoints)}", *flags]) as picker:
        client = client_tls()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await asyncio.open_connection("127.0.0.1", picker.grpc_port, ssl=client)
        assert writer.get_extra_info("cipher")[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
        writer.close()
    async with PickerProcess(
        [SECURE, f"--config-text={config(endpoints)}", "--transport=fast", "--tls-min-version=VersionTLS13"]
    ) as picker:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", picker.grpc_port, ssl=client)


def client_pair(folder: Path) -> Path:
    """A CA (ca.crt) and, in one file, a client's certificate of it with its key."""

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=3650))
            .not_valid_after(NOW + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(ca_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.crt").write_bytes(certificate("ca", ca_key, ca=True))
    (folder / "client.pem").write_bytes(certificate("prometheus", key, ca=False) + private)
    return folder / "client.pem"


async def test_metrics_for_those_with_a_certificate(endpoints: Path, tmp_path: Path) -> None:
    """Prometheus reads them; who shows no certificate does not; who says nothing keeps neither others nor the end waiting."""
    write(tmp_path, A.certificate, A.key)
    known, unknown = client_tls(), client_tls()
    known.set_alpn_protocols(["http/1.1"])
    known.load_cert_chain(client_pair(tmp_path))
    flags = [f"--config-text={config(endpoints)}", f"--metrics-cert-dir={tmp_path}", f"--metrics-client-ca-file={tmp_path / 'ca.crt'}"]
    async with PickerProcess(flags) as picker, aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{picker.metrics_port}/metrics"
        with socket.create_connection(("127.0.0.1", picker.metrics_port)):
            async with session.get(url, ssl=known) as answer:
                assert "llm_d_epp_" in await answer.text()
            with pytest.raises(aiohttp.ClientError):
                await session.get(url, ssl=unknown)
            assert await picker.signal(signal.SIGTERM) == 0
        assert "Traceback" not in picker.log()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--cert-path={folder}"], "tls.key cannot be read (No such file or directory); the folder must hold tls.crt and tls.key"),
        (["--enable-cert-reload"], "--enable-cert-reload: there is nothing to reload without --cert-path"),
        (["--transport=grpc", "--tls-min-version=VersionTLS13"], "not possible with --transport=grpc; use --transport=fast"),
        (["--tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265"], "did you mean TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256?"),
        (["--metrics-cert-dir={folder}"], "--metrics-cert-dir, --metrics-client-ca-file: give both"),
    ],
)
def test_what_cannot_be(endpoints: Path, tmp_path: Path, flags: list[str], sentence: str) -> None:
    """Exit code 2, flag and remedy, no stack trace."""
    (tmp_path / "tls.crt").write_bytes(A.certificate)
    code, said = run_epp(f"--config-text={config(endpoints)}", *(flag.format(folder=tmp_path) for flag in flags))

    assert code == 2
    assert sentence in said
    assert "Traceback" not in said
