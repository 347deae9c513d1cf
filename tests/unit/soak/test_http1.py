"""The soak's own reader of HTTP/1.1: a soak is worth what its reader sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.http1 import Reader

WITH_LENGTH = b"HTTP/1.1 200 OK\r\nserver: envoy\r\ncontent-length: 5\r\n\r\nhello"
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


@given(message=st.sampled_from((WITH_LENGTH, CHUNKED, EMPTY)), cuts=st.lists(st.integers(0, len(CHUNKED)), max_size=5))
def test_any_pieces_make_the_same_message(message: bytes, cuts: list[int]) -> None:
    """It is complete with its last byte and not before."""
    reader, start = Reader(), 0
    for stop in sorted(min(cut, len(message) - 1) for cut in cuts):
        reader.feed(message[start:stop])
        start = stop
        assert not reader.complete
    reader.feed(message[start:])

    assert reader.complete
    assert reader.head == message[: message.index(b"\r\n\r\n") + 4]
    assert bytes(reader.body) == (b"" if message is EMPTY else b"hello")


def test_what_follows_the_end_is_an_error() -> None:
    """A peer that sends too much does not go unseen."""
    reader = Reader()
    reader.feed(WITH_LENGTH)
    with pytest.raises(ValueError, match="after the end"):
        reader.feed(b"!")
