"""The certificate of the gRPC port: generated, or read from files and followed (spec/protocol.md 5.5).

A pair is believed only after it was tried: a broken one, or one half written, leaves the one in use. New handshakes use
the new pair, open connections stay. Nothing is written to disk: pods have a read-only root (spec/deploy.md 0, 9).
Built by the composition root; `run` is one of its tasks.
"""

import asyncio
import logging
import os
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from epp.errors import ConfigError
from epp.reporter import Reporter

logger = logging.getLogger(__name__)

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"

# A change is taken when two looks in a row see the same files: a pair is rarely written at one stroke.
LOOK_INTERVAL_S: Final = 0.25

_GENERATED_FOR: Final = timedelta(days=3650)
# Clocks of peers may be behind.
_LEEWAY: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How the gRPC port does TLS."""

    cert_path: Path | None = None
    """Folder with tls.crt and tls.key; None: a self-signed certificate is made in memory."""
    reload: bool = False
    """Follow the two files."""
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    suites: tuple[str, ...] = ()
    """OpenSSL's names of the suites of TLS 1.2 to offer; empty: OpenSSL's choice."""

    @property
    def wants_rsa(self) -> bool:
        """None of the suites works with an elliptic-curve certificate."""
        return bool(self.suites) and not any("ECDSA" in suite for suite in self.suites)


_Identity = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, both PEM."""

    certificate: bytes
    key: bytes
    expires_at: float
    """Unix seconds; this and the names are those of the first certificate of the chain."""
    names: tuple[str, ...]
    """Hosts it is for."""

    def __str__(self) -> str:
        return f"for {', '.join(self.names) or 'no host'}, valid until {_day(self.expires_at)}"


class Certificates:
    """The pair in use, as each transport wants it."""

    def __init__(
        self, settings: TlsSettings, reporter: Reporter, *, names: tuple[str, ...] = ("localhost",), wall_clock: Callable[[], float]
    ) -> None:
        """`names` go into a generated certificate. Raises ConfigError that names the file and what is wrong with it."""
        self._settings = settings
        self._reporter = reporter
        self._wall_clock = wall_clock
        self._seen: _Identity | None = None
        self._complaint: str | None = None
        self.context = _context(settings)
        if settings.cert_path is None:
            self._pair = generate(names, rsa_key=settings.wants_rsa, now=datetime.fromtimestamp(wall_clock(), UTC))
        else:
            self._seen, self._pair = _read(settings.cert_path)
        self._use(self._pair)

    def __str__(self) -> str:
        """What peers are shown, in words."""
        whose = "a generated certificate" if self._settings.cert_path is None else f"the certificate in {self._settings.cert_path},"
        return f"{whose} {self._pair}"

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """The same for grpc.aio, which asks again at each handshake. Raises ConfigError for settings that gRPC has no place for."""
        if self._settings.suites or self._settings.min_version is not ssl.TLSVersion.TLSv1_2:
            raise ConfigError("--tls-min-version, --tls-cipher-suites: not possible with --transport=grpc; use --transport=fast")
        initial = _grpc_configuration(self._pair)
        return grpc.dynamic_ssl_server_credentials(initial, lambda: _grpc_configuration(self._pair))

    async def run(self) -> None:
        """Follow the files until cancelled; returns at once where that was not asked for."""
        folder = self._settings.cert_path
        if folder is None or not self._settings.reload:
            return
        taken = seen = self._seen
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            before = seen
            try:
                seen = await asyncio.to_thread(_identity, folder)
                if seen != before or seen == taken:
                    continue
                taken, pair = await asyncio.to_thread(_read, folder)
                self._use(pair)
                logger.info("%s: a new certificate is in use, %s", folder, pair)
            except (OSError, ConfigError) as error:
                taken = seen
                self._complain(str(error) if isinstance(error, ConfigError) else f"--cert-path={folder}: {error.strerror}")

    def _use(self, pair: Pair) -> None:
        _load(self.context, pair)
        self._pair = pair
        self._complaint = None
        if pair.expires_at < self._wall_clock():
            logger.warning(
                "the certificate in %s expired on %s: peers that verify it will refuse it", self._settings.cert_path, _day(pair.expires_at)
            )
        self._reporter.certificate_loaded(pair.expires_at)

    def _complain(self, what: str) -> None:
        """One log line for each new problem; each attempt is counted."""
        self._reporter.certificate_reload_failed()
        if what != self._complaint:
            self._complaint = what
            logger.error("%s. The certificate in use stays.", what)


def generate(names: tuple[str, ...], *, rsa_key: bool, now: datetime) -> Pair:
    """A self-signed certificate for ten years. An elliptic-curve key signs a handshake twenty times faster than an RSA one."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "epp"), x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    expires = now + _GENERATED_FOR
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(expires)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), private, expires.timestamp(), names)


def _read(folder: Path) -> tuple[_Identity, Pair]:
    """The pair in a folder and which files they were. Raises ConfigError that names the file, the problem and the remedy."""
    try:
        identity = _identity(folder)  # before reading: a change meanwhile makes other files of them, which the next look takes
    except OSError:  # reading them says why
        identity = ()
    files: list[bytes] = []
    for name in (CERTIFICATE_FILE, KEY_FILE):
        try:
            files.append((folder / name).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"--cert-path={folder}: {name} cannot be read ({error.strerror}); the folder must hold {CERTIFICATE_FILE} and {KEY_FILE}"
            ) from None
    certificate, key = files
    try:
        first = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise ConfigError(f"--cert-path={folder}: {CERTIFICATE_FILE} holds no certificate in PEM") from None
    try:
        serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        reason = "is encrypted; give the key without a passphrase" if isinstance(error, TypeError) else "holds no private key in PEM"
        raise ConfigError(f"--cert-path={folder}: {KEY_FILE} {reason}") from None
    pair = Pair(certificate, key, first.not_valid_after_utc.timestamp(), _hosts(first))
    try:
        # Never the context in use: one that refuses a pair has already taken half of it.
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
    except ssl.SSLError as error:
        raise ConfigError(f"--cert-path={folder}: {CERTIFICATE_FILE} and {KEY_FILE} do not make a pair ({error.reason})") from None
    return identity, pair


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """Its alternative names. Peers look at nothing else, and what cannot be read is none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return (*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress)))


def _identity(folder: Path) -> _Identity:
    """Which files these are; through the links that a mounted Secret is made of. Raises OSError."""
    statuses = [(folder / name).stat() for name in (CERTIFICATE_FILE, KEY_FILE)]
    return tuple((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in statuses)


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = settings.min_version
    context.set_alpn_protocols(["h2"])
    if settings.suites:
        context.set_ciphers(":".join(settings.suites))
    return context


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    """The ssl module reads certificates from files only: on Linux a file in memory is one. Raises ssl.SSLError."""
    with _scratch_file() as file:
        file.write(pair.certificate + b"\n" + pair.key)
        file.flush()
        context.load_cert_chain(file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.name}")


def _scratch_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("epp-certificate"), "wb")
    return tempfile.NamedTemporaryFile()


def _grpc_configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)])


def _day(unix_seconds: float) -> str:
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d}"
