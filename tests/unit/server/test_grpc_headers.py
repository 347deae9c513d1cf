"""gRPC's use of HTTP/2 headers."""

import pytest

from epp.server import grpc_headers
from epp.server.status import DONE, Ending, Status

CALL = {b":method": b"POST", b":path": b"/s/m", b"content-type": b"application/grpc"}


@pytest.mark.parametrize(
    "content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc; charset=utf-8", b"Application/GRPC"]
)
@pytest.mark.parametrize("encoding", [{}, {b"grpc-encoding": b"gzip"}, {b"grpc-encoding": b"identity"}])
def test_calls(content_type: bytes, encoding: dict[bytes, bytes]) -> None:
    """These are calls."""
    assert grpc_headers.refusal({**CALL, b"content-type": content_type, **encoding}, known=True) is None


@pytest.mark.parametrize(
    ("change", "known", "answer"),
    [
        ({b":method": b"GET"}, True, {b":status": b"405", b"allow": b"POST"}),
        ({b"content-type": b"application/grpc-web"}, True, {b":status": b"415"}),
        ({b"content-type": b"application/json"}, True, {b":status": b"415"}),
        ({b"content-type": b""}, False, {b":status": b"415"}),
        ({}, False, {b":status": b"200", b"content-type": b"application/grpc", b"grpc-status": b"12", b"grpc-message": b"no method /s/m"}),
        (
            {b"grpc-encoding": b"snappy"},
            True,
            {
                b":status": b"200",
                b"content-type": b"application/grpc",
                b"grpc-status": b"12",
                b"grpc-message": b"messages compressed with 'snappy' are not understood",
                b"grpc-accept-encoding": b"identity,gzip",
            },
        ),
    ],
)
def test_refusals(change: dict[bytes, bytes], *, known: bool, answer: dict[bytes, bytes]) -> None:
    """What is no call of ours gets the answer gRPC says it must."""
    refusal = grpc_headers.refusal({**CALL, **change}, known=known)
    assert refusal is not None
    assert dict(refusal) == answer
    assert refusal[0][0] == b":status"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"5u", 5e-6),
        (b"99999999n", 0.099999999),
        (b"0S", 0.0),
        (b"100000000S", None),
        (b"1s", None),
        (b"-1S", None),
        (b"1.5S", None),
        (b"", None),
        (b"1S\n", None),
    ],
)
def test_timeouts(value: bytes, seconds: float | None) -> None:
    """At most eight digits and a unit."""
    assert grpc_headers.timeout_s(value) == pytest.approx(seconds)


def test_trailers() -> None:
    """A status, and why, in printable ASCII."""
    assert grpc_headers.trailers(DONE) == ((b"grpc-status", b"0"),)
    assert dict(grpc_headers.trailers(Ending(Status.INTERNAL, "100% \u00fcber\n"))) == {
        b"grpc-status": b"13",
        b"grpc-message": b"100%25 %C3%BCber%0A",
    }
    assert len(dict(grpc_headers.trailers(Ending(Status.INTERNAL, "x" * 100_000)))[b"grpc-message"]) == 1000
