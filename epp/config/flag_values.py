"""What a flag's text may be: each function turns one into its value, or raises ValueError that says what was expected. Pure."""

import difflib
import math
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Final, TypeVar

from epp.config.units import parse_duration

_T = TypeVar("_T")

_BYTE_UNITS: Final[Mapping[str, int]] = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]\+?([0-9]{1,2})|([kKMGT]i?)?)[Bb]?")
_TRUE, _FALSE = frozenset({"1", "t", "true"}), frozenset({"0", "f", "false"})

# Go's names. What is older than 1.2 is not offered: HTTP/2 forbids it (RFC 9113 9.2).
_TLS_VERSIONS: Final = {
    "VersionTLS10": ssl.TLSVersion.TLSv1_2,
    "VersionTLS11": ssl.TLSVersion.TLSv1_2,
    "VersionTLS12": ssl.TLSVersion.TLSv1_2,
    "VersionTLS13": ssl.TLSVersion.TLSv1_3,
}
OLD_TLS_VERSIONS: Final = frozenset(name for name in _TLS_VERSIONS if name < "VersionTLS12")
# Go's names to OpenSSL's: the suites of TLS 1.2 that HTTP/2 permits (RFC 9113, appendix A, lists the others).
_TLS_SUITES: Final = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
# As in Go, these are always on and cannot be chosen.
_TLS13_SUITES: Final = frozenset(("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"))

MIN_REFRESH_INTERVAL_S: Final = 0.05
MAX_MESSAGE_BYTES: Final = (1 << 31) - 1
MAX_BODY_BYTES: Final = 1 << 40
DEFAULT_VERBOSITY: Final = 2


def size(text: str) -> int:
    """Bytes of a Kubernetes quantity with an optional trailing B, such as "10MiB" or "25MB"."""
    match = _SIZE.fullmatch(text)
    unit = match[3] or "" if match else ""
    if match is None or unit not in _BYTE_UNITS:
        raise ValueError('expected a size such as "10MiB" or "25MB"')
    return math.ceil(Fraction(match[1]) * (10 ** int(match[2]) if match[2] else _BYTE_UNITS[unit]))


def message_size(text: str) -> int:
    """Bytes of the largest gRPC message, as far as every transport can count."""
    return _bounded(size(text), MAX_MESSAGE_BYTES)


def body_size(text: str) -> int:
    """Bytes of the largest request body."""
    return _bounded(size(text), MAX_BODY_BYTES)


def _bounded(value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise ValueError(f"must be between 1 byte and {most} bytes")
    return value


def boolean(text: str) -> bool:
    """As Go's strconv.ParseBool, in any case."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("expected true or false")


def port(text: str) -> int:
    """A TCP port; 0: one the system chooses."""
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise ValueError("expected a port, 0 to 65535 (0: one the system chooses)")


def target_ports(text: str) -> tuple[int, ...]:
    """1 to 8 different ports, a comma list."""
    ports = tuple(dict.fromkeys(port(part.strip()) for part in text.split(",") if part.strip()))
    if not 1 <= len(ports) <= 8:
        raise ValueError("expected 1 to 8 ports, such as 8000,8001")
    return ports


def wait(text: str) -> float:
    """Seconds of a Go duration from zero on."""
    seconds = parse_duration(text)
    if seconds < 0:
        raise ValueError("must not be negative")
    return seconds


def period(text: str) -> float:
    """Seconds of a Go duration above zero."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("must be above 0s")
    return seconds


def refresh_interval(text: str) -> float:
    """At least 50 ms, as llm-d clamps it."""
    return max(MIN_REFRESH_INTERVAL_S, wait(text))


def is_raised(text: str) -> bool:
    """Whether `refresh_interval` makes more of it."""
    return bool(text) and wait(text) < MIN_REFRESH_INTERVAL_S


def verbosity(text: str) -> int:
    """A whole number; a negative one means the default, as in llm-d."""
    try:
        value = int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None
    return value if value >= 0 else DEFAULT_VERBOSITY


def empty_is(default: _T, parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """A flag whose default llm-d writes as an empty text: charts pass that on."""

    def parse_or_default(text: str) -> _T:
        return parse(text) if text else default

    return parse_or_default


def choice(*allowed: str) -> Callable[[str], str]:
    """One of some words."""

    def parse(text: str) -> str:
        if text in allowed:
            return text
        raise ValueError(f"expected {_or(allowed)}")

    return parse


def any_case(parse: Callable[[str], str]) -> Callable[[str], str]:
    """Words in small or capital letters, as controller-runtime's flags take them."""
    return lambda text: parse(text.lower())


def level(text: str) -> str:
    """A level of controller-runtime's zap flags: a word, or a number that is a verbosity."""
    if text.isascii() and text.isdigit():
        return text
    return any_case(choice("debug", "info", "warn", "error", "panic"))(text)


def tls_version(text: str) -> ssl.TLSVersion:
    """The oldest version to offer, by Go's name."""
    if text in _TLS_VERSIONS:
        return _TLS_VERSIONS[text]
    raise ValueError(f"expected {_or(tuple(_TLS_VERSIONS))}")


def tls_suites(text: str) -> tuple[str, ...]:
    """OpenSSL's names of a comma list of Go's; those of TLS 1.3 are always on and left out."""
    names = [name for part in text.split(",") if (name := part.strip())]
    for name in names:
        if name not in _TLS_SUITES and name not in _TLS13_SUITES:
            close = difflib.get_close_matches(name, _TLS_SUITES, n=1, cutoff=0.8)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(_TLS_SUITES)}"
            raise ValueError(f"{name} is no cipher suite that HTTP/2 permits; {remedy}")
    return tuple(_TLS_SUITES[name] for name in names if name in _TLS_SUITES)


def exactly(value: str, why: str) -> Callable[[str], str]:
    """A flag that can only have the value it has anyway."""

    def parse(text: str) -> str:
        if text == value:
            return text
        raise ValueError(f"{why}: only {value!r} is possible")

    return parse


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
