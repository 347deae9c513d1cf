"""The two ways in which Envoy names a request by its beginning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp._proto import ext_proc_pb2 as pb
from epp.extproc import origin


def from_attributes(time: str, address: str) -> str | None:
    """Of a filter that is configured to send both."""
    entry = pb.ProcessingRequest.AttributesEntry(key="envoy.filters.http.ext_proc")
    entry.value.update({"request.time": time, "source.address": address})
    return origin.from_attributes(entry.SerializeToString())


@pytest.mark.parametrize(
    ("time", "seconds", "nanos"),
    [
        ("2026-11-23T18:07:29.418721+00:00", 1_795_457_249, 418_721_000),
        ("2026-11-23T18:07:29.49641+00:00", 1_795_457_249, 496_410_000),
        ("2026-11-23T18:07:29+00:00", 1_795_457_249, 0),
        ("2026-11-23T18:07:29.1Z", 1_795_457_249, 100_000_000),
        ("2026-11-23T19:07:29.1+01:00", 1_795_457_249, 100_000_000),
        ("2026-11-23T18:07:29.418721999+00:00", 1_795_457_249, 418_721_003),
    ],
    ids=["Envoy 1.40", "its zeros are cut", "no fraction", "Z", "another zone", "finer than Envoy's clock"],
)
def test_attribute_and_log_entry_give_the_same(time: str, seconds: int, nanos: int) -> None:
    """RFC 3339 text here, seconds and nanoseconds there; Envoy's clock counts microseconds."""
    assert from_attributes(time, "[::1]:52536") == origin.of(seconds, nanos, "[::1]:52536")


@pytest.mark.parametrize(
    ("time", "address"),
    [("", "10.0.0.1:5"), ("yesterday", "10.0.0.1:5"), ("2026-11-23T18:07:29", "10.0.0.1:5"), ("2026-11-23T18:07:29Z", ""), ("", "")],
)
def test_without_a_time_and_an_address_there_is_no_origin(time: str, address: str) -> None:
    """A filter that is not configured to tell, or a data plane that writes times otherwise."""
    assert from_attributes(time, address) is None


@given(st.text(max_size=40), st.text(max_size=10))
def test_any_text(time: str, address: str) -> None:
    """No text is an error."""
    from_attributes(time, address)


@given(st.binary(max_size=64))
def test_any_bytes(attributes: bytes) -> None:
    """Nor are any bytes; they are read long after the request was."""
    origin.from_attributes(attributes)


def test_requests_of_one_client_differ() -> None:
    """By a microsecond, or by a port."""
    assert len({origin.of(1, 1000, "a:1"), origin.of(1, 2000, "a:1"), origin.of(1, 1000, "a:2")}) == 3
