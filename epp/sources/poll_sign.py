"""What a failed poll of /metrics says of whether somebody listens: connecting told from all that may go wrong after it.

Used by `metrics`. Most failures tell by themselves. A poll that took too long does not: its time may have gone into connecting, a TLS handshake or
reading, and aiohttp's own limit of connecting includes the handshake. So it is tried once more, with nothing but a TCP connection.
"""

import asyncio
import errno
from typing import Final

import aiohttp
from yarl import URL

from epp.sources.reachability import Sign

# There is no way there, or nobody at its end.
NO_WAY: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT})
# We lack something.
OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})


async def sign_of(error: Exception, url: URL, limit_s: float) -> Sign:
    """Of a poll of `url` that failed with `error`; takes time, up to `limit_s`, only where the poll timed out."""
    if isinstance(error, aiohttp.ClientSSLError):
        return Sign.ANSWERED
    if isinstance(error, aiohttp.ClientConnectorError):
        return _not_connected(error.os_error)
    if isinstance(error, TimeoutError):
        return await _connecting(url, limit_s)
    return _of_errno(error) or Sign.ANSWERED


async def _connecting(url: URL, limit_s: float) -> Sign:
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(url.host, url.port)
    except OSError as error:
        return _not_connected(error)
    writer.close()
    return Sign.ANSWERED


def _not_connected(error: OSError) -> Sign:
    """Of what ended the making of a connection, a TLS handshake included."""
    if isinstance(error, ConnectionRefusedError):
        return Sign.REFUSED
    if isinstance(error, TimeoutError):
        return Sign.SILENT
    # A handshake that is broken off, which only somebody who listens can do. All else, a name that is not found say, tells nothing.
    return _of_errno(error) or (Sign.ANSWERED if isinstance(error, ConnectionError) else Sign.UNCLEAR)


def _of_errno(error: Exception) -> Sign | None:
    """None: it has no number that tells."""
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_WAY:
        return Sign.SILENT
    return Sign.UNCLEAR if number in OURS else None
