"""gRPC's message framing: whatever way the bytes are cut, the same messages, and the same failure."""

import gzip
import itertools
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.server.grpc_framing import MessageReader, frame
from epp.server.status import Status

LIMIT = 100


def compressed(data: bytes) -> bytes:
    return b"\1" + len(data).to_bytes(4, "big") + data


def outcome(chunks: Sequence[bytes]) -> tuple[list[bytes], str | None]:
    """The messages of a stream that arrives in these chunks, and what stands in for a next one."""
    reader = MessageReader(LIMIT, gzip=True)
    messages = [message for chunk in chunks for message in reader.feed(chunk)]
    reader.end()
    return messages, None if reader.failure is None else str(reader.failure)


WIRES = st.lists(
    st.one_of(
        st.binary(max_size=LIMIT).map(frame),
        st.binary(max_size=40).map(lambda data: compressed(gzip.compress(data))),
        st.binary(max_size=8),  # garbage, or a message that is cut off
        st.just(compressed(gzip.compress(bytes(1000)))),
        st.just(frame(bytes(LIMIT + 1))),
    ),
    max_size=6,
).map(b"".join)


@given(WIRES, st.lists(st.integers(0, 500), max_size=20))
def test_any_chunking_gives_the_same(wire: bytes, cuts: list[int]) -> None:
    """Frame borders mean nothing."""
    borders = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    assert outcome([wire[a:b] for a, b in itertools.pairwise(borders)]) == outcome([wire])


@given(st.lists(st.binary(max_size=LIMIT)), st.integers(1, 7))
def test_what_was_framed_is_read(messages: list[bytes], size: int) -> None:
    """Every message arrives, empty ones too, and nothing is kept of them."""
    wire = b"".join(map(frame, messages))
    reader = MessageReader(LIMIT, gzip=False)
    chunks = [wire[at : at + size] for at in range(0, len(wire), size)]
    assert [message for chunk in chunks for message in reader.feed(chunk)] == messages
    assert reader.pending == 0
    assert reader.failure is None


@pytest.mark.parametrize(
    ("wire", "compresses", "status", "words"),
    [
        (frame(bytes(101)), False, Status.RESOURCE_EXHAUSTED, "(101 bytes) over the limit of 100 bytes: raise --grpc-max-recv-msg-size"),
        (b"\0\xff\xff\xff\xff", False, Status.RESOURCE_EXHAUSTED, "(4294967295 bytes)"),
        (compressed(gzip.compress(bytes(101))), True, Status.RESOURCE_EXHAUSTED, "(gzip, inflated) over the limit"),
        (compressed(gzip.compress(b"x")), False, Status.INTERNAL, "compression flag 1 on a stream without compression"),
        (b"\2\0\0\0\0", True, Status.INTERNAL, "compression flag 2"),
        (compressed(b"no gzip"), True, Status.INTERNAL, "that is no gzip"),
        (compressed(zlib.compress(b"x")), True, Status.INTERNAL, "that is no gzip"),
        (compressed(gzip.compress(b"x")[:-1]), True, Status.INTERNAL, "not one whole gzip member"),
        (compressed(gzip.compress(b"x") * 2), True, Status.INTERNAL, "not one whole gzip member"),
    ],
)
def test_failures(wire: bytes, *, compresses: bool, status: Status, words: str) -> None:
    """What came before a failure counts, nothing after it does, and the peer is told what was wrong."""
    reader = MessageReader(LIMIT, gzip=compresses)
    assert list(reader.feed(frame(b"before") + wire + frame(b"after"))) == [b"before"]
    assert reader.feed(frame(b"later")) == ()
    reader.end()
    assert reader.failure is not None
    assert reader.failure.ending.status is status
    assert words in reader.failure.ending.details
    assert reader.pending == 0


def test_an_incomplete_message() -> None:
    """A stream that ends within a message fails; one that ends between two does not."""
    assert outcome([frame(b"a")]) == ([b"a"], None)
    assert outcome([frame(b"a"), frame(b"b")[:-1]]) == ([b"a"], "the stream ended within a message: 5 bytes of it arrived")


def test_a_long_message_in_small_pieces() -> None:
    """What is kept of a message is about as large as the message, however it was cut."""
    reader = MessageReader(1 << 20, gzip=False)
    wire = frame(bytes(1 << 20))
    for at in range(0, len(wire) - 2, 2):
        assert not reader.feed(wire[at : at + 2])
    assert reader.pending == 1 << 20 | 4
    assert [len(message) for message in reader.feed(wire[-1:])] == [1 << 20]
