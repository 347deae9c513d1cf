"""The port of /metrics: who reaches it, and what is said where it cannot be opened."""

import socket
import urllib.request
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from epp.errors import ConfigError
from epp.observability.metrics_server import serve

TLS = Path(__file__).parents[2] / "data" / "tls"

pytestmark = pytest.mark.usefixtures("reporter")


def test_the_page_is_served_until_closed(registry: CollectorRegistry) -> None:
    """On a port of the system's choice, to both address families where there are two."""
    server = serve(registry, 0)
    try:
        for address in ("127.0.0.1", "[::1]") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            with urllib.request.urlopen(f"http://{address}:{server.port}/metrics", timeout=5) as answer:
                assert b"llm_d_epp_info" in answer.read()
    finally:
        server.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_a_taken_port_is_a_sentence(registry: CollectorRegistry) -> None:
    """Flag, reason and remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError) as caught:
        serve(registry, port := taken.getsockname()[1], "127.0.0.1")
    assert str(caught.value) == f"--metrics-port={port}: cannot listen (Address already in use): free the port or choose another one"


def other_key() -> bytes:
    """A key that belongs to no certificate here."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("ca.crt", None, "--metrics-client-ca-file={folder}/ca.crt: No such file or directory; give a file of CA certificates in PEM"),
        ("ca.crt", b"x", "--metrics-client-ca-file={folder}/ca.crt: no certificate or crl found; give a file of CA certificates in PEM"),
        ("tls.key", None, "--metrics-cert-dir={folder}: No such file or directory; the folder must hold tls.crt and tls.key, a pair"),
        ("tls.key", other_key(), "--metrics-cert-dir={folder}: key values mismatch; the folder must hold tls.crt and tls.key, a pair"),
        ("tls.crt", b"x", "--metrics-cert-dir={folder}: no certificate or key in PEM; the folder must hold tls.crt and tls.key, a pair"),
    ],
)
def test_files_that_cannot_be_used_are_a_sentence(
    registry: CollectorRegistry, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    """The flag whose file is wrong, what is wrong with it, and the remedy."""
    certificate, key = (TLS / "cert.pem").read_bytes(), (TLS / "key.pem").read_bytes()
    for file, good in {"ca.crt": certificate, "tls.crt": certificate, "tls.key": key}.items():
        written = content if file == name else good
        if written is not None:
            (tmp_path / file).write_bytes(written)

    with pytest.raises(ConfigError) as caught:
        serve(registry, 0, "127.0.0.1", cert_dir=str(tmp_path), client_ca=str(tmp_path / "ca.crt"))

    assert str(caught.value) == sentence.format(folder=tmp_path)
