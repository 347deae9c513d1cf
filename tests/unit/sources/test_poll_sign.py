"""What a failed poll is a sign of: connecting told from all that may go wrong after it, and their fault from ours."""

import errno
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from epp.sources.engine_metrics import PageError
from epp.sources.poll_sign import sign_of
from epp.sources.reachability import Sign

KEY = ConnectionKey("10.0.0.1", 8000, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
ELSEWHERE = URL("http://127.0.0.1:1/metrics")


def connecting(number: int) -> Exception:
    return aiohttp.ClientConnectorError(KEY, OSError(number, "while connecting"))


def connected(number: int) -> Exception:
    return aiohttp.ClientOSError(number, "on an established connection")


@pytest.mark.parametrize(
    ("error", "sign"),
    [
        (connecting(errno.ECONNREFUSED), Sign.REFUSED),
        (connecting(errno.EHOSTUNREACH), Sign.SILENT),
        (connecting(errno.ENETUNREACH), Sign.SILENT),
        (connecting(errno.ETIMEDOUT), Sign.SILENT),
        (connecting(errno.EMFILE), Sign.UNCLEAR),
        (connecting(errno.ENFILE), Sign.UNCLEAR),
        (connecting(errno.ENOMEM), Sign.UNCLEAR),
        (connecting(errno.EADDRNOTAVAIL), Sign.UNCLEAR),
        (connecting(errno.EPERM), Sign.UNCLEAR),
        (aiohttp.ClientConnectorError(KEY, OSError("Multiple exceptions: of several kinds")), Sign.UNCLEAR),
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_NONAME, "Name or service not known")), Sign.UNCLEAR),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(errno.EPERM, "wrong version number")), Sign.ANSWERED),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError(1, "self-signed")), Sign.ANSWERED),
        (aiohttp.ClientConnectorError(KEY, ConnectionResetError()), Sign.ANSWERED),
        (connected(errno.ECONNRESET), Sign.ANSWERED),
        (connected(errno.EPIPE), Sign.ANSWERED),
        (connected(errno.EHOSTUNREACH), Sign.SILENT),
        (connected(errno.ENOMEM), Sign.UNCLEAR),
        (aiohttp.ServerDisconnectedError(), Sign.ANSWERED),
        (aiohttp.ClientPayloadError(), Sign.ANSWERED),
        (aiohttp.ClientResponseError(None, (), status=400), Sign.ANSWERED),  # type: ignore[arg-type]  # of no interest here
        (PageError("no metrics"), Sign.ANSWERED),
        (TimeoutError(), Sign.REFUSED),
    ],
)
async def test_failures_and_what_they_say(error: Exception, sign: Sign) -> None:
    """A poll that timed out says what a new connection does: here it is refused."""
    assert await sign_of(error, ELSEWHERE, 1.0) is sign


async def test_a_poll_that_timed_out_is_no_silence_where_connections_are_taken() -> None:
    """A slow page, or a handshake that does not end; the kernel takes connections up to the backlog, after that nobody does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        url = URL.build(scheme="https", host="127.0.0.1", port=server.getsockname()[1])
        assert await sign_of(TimeoutError(), url, 1.0) is Sign.ANSWERED
        waiting = [socket.socket() for _ in range(8)]
        try:
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(server.getsockname())
            assert await sign_of(TimeoutError(), url, 0.1) is Sign.SILENT
        finally:
            for each in waiting:
                each.close()
