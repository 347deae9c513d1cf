"""The certificate a peer is shown: generated, read, refused, and swapped while connections stay."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from epp.config import flag_values
from epp.errors import ConfigError
from epp.reporter import Reporter
from epp.server.certificates import Certificates, TlsSettings, generate
from epp.testing.waiting import eventually

NOW = datetime(2026, 11, 23, tzinfo=UTC)
A = generate(("a.example",), rsa_key=False, now=NOW)
B = generate(("b.example",), rsa_key=False, now=NOW)


class Notes(Reporter):
    def __init__(self) -> None:
        self.expiries: list[float] = []
        self.failures = 0

    def certificate_loaded(self, expires_at: float) -> None:
        self.expiries.append(expires_at)

    def certificate_reload_failed(self) -> None:
        self.failures += 1


def certificates(settings: TlsSettings, notes: Reporter | None = None) -> Certificates:
    return Certificates(settings, notes or Reporter(), names=("pod-1",), wall_clock=time.time)


def write(folder: Path, certificate: bytes, key: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)


class Server:
    """Greets whoever completes a handshake, and echoes lines."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.port = 0

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async for line in reader:
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        yield
        server.close()
        await server.wait_closed()

    async def connect(self, **options: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.set_alpn_protocols(["h2"])
        for name, value in options.items():
            setattr(client, name, value)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=client)

    async def shown(self) -> str:
        """The name in the certificate a new connection gets."""
        _, writer = await self.connect()
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return x509.load_der_x509_certificate(der).subject.rfc4514_string()


async def test_without_files_a_certificate_is_made() -> None:
    """Peers that do not verify, as gateways do not, connect at once; HTTP/2 is agreed on, and TLS 1.3."""
    notes = Notes()
    server = Server(certificates(TlsSettings(), notes).context)
    async with server.serve():
        _, writer = await server.connect()
        connection = writer.get_extra_info("ssl_object")
        assert (connection.selected_alpn_protocol(), connection.version()) == ("h2", "TLSv1.3")
        assert await server.shown() == "CN=pod-1,O=epp"
        writer.close()
    [expiry] = notes.expiries
    assert expiry > time.time() + 9 * 365 * 86400


@pytest.mark.parametrize(
    ("settings", "cipher"),
    [
        (TlsSettings(suites=flag_values.tls_suites("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")), "ECDHE-RSA-AES128-GCM-SHA256"),
        (
            TlsSettings(suites=flag_values.tls_suites("TLS_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")),
            "ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
    ],
)
async def test_cipher_suites(settings: TlsSettings, cipher: str) -> None:
    """The suites asked for are the ones in use, whatever kind of key they need."""
    server = Server(certificates(settings).context)
    async with server.serve():
        _, writer = await server.connect(maximum_version=ssl.TLSVersion.TLSv1_2)
        assert writer.get_extra_info("cipher")[0] == cipher
        writer.close()


async def test_minimum_version() -> None:
    """A peer that is too old is turned away."""
    server = Server(certificates(TlsSettings(min_version=flag_values.tls_version("VersionTLS13"))).context)
    async with server.serve():
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await server.connect(maximum_version=ssl.TLSVersion.TLSv1_2)


async def test_a_new_pair_is_shown_without_dropping_connections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half a pair and a broken one change nothing but the log; the whole one is used for new connections; old ones stay."""
    caplog.set_level(logging.INFO)
    folder, notes = tmp_path / "tls", Notes()
    write(folder, A.certificate, A.key)
    held = certificates(TlsSettings(folder, reload=True), notes)
    server = Server(held.context)
    async with server.serve():
        following = asyncio.create_task(held.run())
        reader, writer = await server.connect()
        assert await server.shown() == "CN=a.example,O=epp"
        (folder / "tls.crt").write_bytes(B.certificate)
        await eventually(lambda: notes.failures == 1)
        (folder / "tls.crt").write_bytes(b"rubbish")
        await eventually(lambda: notes.failures == 2)
        assert await server.shown() == "CN=a.example,O=epp"
        write(folder, B.certificate, B.key)
        await eventually(lambda: len(notes.expiries) == 2)
        assert await server.shown() == "CN=b.example,O=epp"
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        following.cancel()
        writer.close()
    assert "do not make a pair" in caplog.text
    assert "holds no certificate in PEM. The certificate in use stays." in caplog.text


async def test_a_mounted_secret_is_followed(tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder; the folder before it vanishes."""
    write(tmp_path / "one", A.certificate, A.key)
    write(tmp_path / "two", B.certificate, B.key)
    mount, notes = tmp_path / "mount", Notes()
    mount.mkdir()
    (mount / "..data").symlink_to(tmp_path / "one")
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(Path("..data") / name)
    held = certificates(TlsSettings(mount, reload=True), notes)
    following = asyncio.create_task(held.run())
    (mount / "..new").symlink_to(tmp_path / "two")
    (mount / "..new").replace(mount / "..data")
    await eventually(lambda: len(notes.expiries) == 2)
    server = Server(held.context)
    async with server.serve():
        assert await server.shown() == "CN=b.example,O=epp"
    following.cancel()


def test_the_log_can_say_what_peers_are_shown(tmp_path: Path) -> None:
    """Whose certificate, for which hosts and until when: what one looks for when a gateway does not connect."""
    write(tmp_path, A.certificate, A.key)
    assert str(certificates(TlsSettings(tmp_path))) == f"the certificate in {tmp_path}, for a.example, valid until 2036-11-20"
    assert str(certificates(TlsSettings())).startswith("a generated certificate for pod-1, valid until 20")


async def test_files_are_left_alone_unless_asked_to_follow(tmp_path: Path) -> None:
    """Without --enable-cert-reload the task ends at once."""
    write(tmp_path, A.certificate, A.key)
    await certificates(TlsSettings(tmp_path)).run()


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (None, A.key, r"tls\.crt cannot be read \(No such file or directory\); the folder must hold tls\.crt and tls\.key"),
        (A.certificate, None, r"tls\.key cannot be read"),
        (b"x", A.key, r"tls\.crt holds no certificate in PEM"),
        (A.certificate, b"x", r"tls\.key holds no private key in PEM"),
        (A.certificate, B.key, r"tls\.crt and tls\.key do not make a pair"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, certificate: bytes | None, key: bytes | None, message: str) -> None:
    """At start every problem with the pair is an error that names file and remedy."""
    for name, content in (("tls.crt", certificate), ("tls.key", key)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        certificates(TlsSettings(tmp_path))


def test_an_expired_certificate_is_used_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most gateways do not verify: serving on beats an outage, but not in silence."""
    old = generate(("old.example",), rsa_key=False, now=datetime(2010, 1, 1, tzinfo=UTC))
    write(tmp_path, old.certificate, old.key)
    certificates(TlsSettings(tmp_path))
    assert "expired on 2019-12-30" in caplog.text


@pytest.mark.parametrize(
    "settings", [TlsSettings(min_version=ssl.TLSVersion.TLSv1_3), TlsSettings(suites=("ECDHE-RSA-AES128-GCM-SHA256",))]
)
def test_what_grpc_cannot_do_is_refused(settings: TlsSettings) -> None:
    """A setting without effect would be a hole nobody sees."""
    with pytest.raises(ConfigError, match="use --transport=fast"):
        certificates(settings).grpc_credentials()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RC4-MD5", "RC4-MD5 is no cipher suite that HTTP/2 permits; there are TLS_ECDHE_ECDSA_WITH"),
        (
            "TLS_RSA_WITH_AES_128_CBC_SHA",
            "TLS_RSA_WITH_AES_128_CBC_SHA is no cipher suite that HTTP/2 permits; did you mean TLS_ECDHE_RSA_",
        ),
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA25", "did you mean TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256?"),
    ],
)
def test_wrong_suites(text: str, message: str) -> None:
    """A suite that cannot be used is named, with the nearest one that can."""
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        flag_values.tls_suites(text)


def test_wrong_versions() -> None:
    """Go's names are expected."""
    with pytest.raises(ValueError, match="expected VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13"):
        flag_values.tls_version("1.3")
