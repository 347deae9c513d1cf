"""Listening sockets, with errors an operator can act on. Called by the transports at start."""

import os
import socket

from epp.errors import ConfigError

BACKLOG = 1024

# As gRPC does, every interface means those of both address families.
_WILDCARDS = frozenset(("", "0.0.0.0", "::"))  # noqa: S104  # compared with, not bound


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A socket that listens on `host`:`port` (0: a free one) alone: another process cannot share it. Raises ConfigError naming `flag`."""
    dual_stack = host in _WILDCARDS and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack or ":" in host else socket.AF_INET
    try:
        return socket.create_server(("::" if dual_stack else host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual_stack)
    except OSError as error:
        # create_server adds words of its own to a system error, and a name that cannot be resolved has none.
        known = error.errno is not None and error.errno > 0
        raise unavailable(host, port, flag, os.strerror(error.errno) if known and error.errno else str(error.strerror)) from error


def unavailable(host: str, port: int, flag: str, reason: str) -> ConfigError:
    """The error for a port that cannot be had."""
    return ConfigError(f"{flag}={port}: cannot listen on {authority(host, port)} ({reason}): free the port or choose another one")


def authority(host: str, port: int) -> str:
    """ "host:port", IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
