"""/metrics on a port: plain, or over TLS to those who show a certificate. Served by prometheus_client's own threads.

Started and closed by the composition root.
"""

import contextlib
import logging
import os
import socket
import ssl
import sys
import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from epp.errors import ConfigError

logger = logging.getLogger(__name__)


class MetricsServer:
    """A registry on a port, until `close`."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._serving = thread

    @property
    def port(self) -> int:
        """The port it listens on; the one the system chose where 0 was asked for."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening. Blocks for up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()


def serve(registry: CollectorRegistry, port: int, host: str = "", *, cert_dir: str = "", client_ca: str = "") -> MetricsServer:
    """Serve the registry over HTTP, or over TLS to clients of `client_ca` where `cert_dir` has tls.crt and tls.key.

    `host` "": every interface, of both address families where there are two. Raises ConfigError where the port or a file cannot be had.
    """
    host = host or _every_interface()
    certificate, key = (f"{cert_dir}/tls.crt", f"{cert_dir}/tls.key") if cert_dir else (None, None)
    if certificate and key:
        _try_files(certificate, key, cert_dir, client_ca)
    try:
        server, thread = start_http_server(port, host, registry, certificate, key, client_ca or None, client_auth_required=bool(cert_dir))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(f"--metrics-port={port}: cannot listen ({reason}): free the port or choose another one") from None
    if isinstance(server.socket, ssl.SSLSocket):
        # prometheus_client shakes hands where it accepts: a client that says nothing would hold up the others, and the end of the process.
        server.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]  # typeshed does not know it
        # The handshake now fails in a handler, whose default is to print a trace.
        server.handle_error = _refused  # type: ignore[method-assign, assignment]  # prometheus_client takes no server class
    return MetricsServer(server, thread)


def _every_interface() -> str:
    """Of both address families, where a socket of IPv6 takes IPv4 by itself: prometheus_client does not ask for it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        if not probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return "::"
    return "0.0.0.0"  # noqa: S104  # Prometheus asks from outside


def _try_files(certificate: str, key: str, cert_dir: str, client_ca: str) -> None:
    """prometheus_client opens the port first, and does not say which file is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(client_ca)
    except OSError as error:
        raise ConfigError(f"--metrics-client-ca-file={client_ca}: {_reason(error)}; give a file of CA certificates in PEM") from None
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(f"--metrics-cert-dir={cert_dir}: {_reason(error)}; the folder must hold tls.crt and tls.key, a pair") from None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "no certificate or key in PEM"
    return str(error.strerror)


def _refused(_request: object, client: object) -> None:
    logger.debug("/metrics: no TLS connection with %s: %s", client, sys.exc_info()[1])
