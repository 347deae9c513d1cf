"""Messages read and written by hand are those the protobuf library reads and writes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp._proto import core_pb2
from epp._proto import ext_proc_pb2 as pb
from epp.domain import DecisionId
from epp.errors import ProtocolError
from epp.extproc import codec, log_wire, wire
from epp.extproc.events import (
    ContinueRequestBody,
    ContinueRequestHeaders,
    ContinueResponseBody,
    Event,
    Reply,
    ReplyRequestBody,
    ReplyRequestHeaders,
    ReplyRequestTrailers,
    ReplyResponseBody,
    ReplyResponseHeaders,
    ReplyResponseTrailers,
    Route,
)

MODES = ("request_body_mode", "response_body_mode")
TEXT = st.text(max_size=40)
HEADER_VALUES = st.one_of(st.binary(max_size=300), st.sampled_from([b"", b"\xff", b"x" * 127, b"x" * 128, b"x" * 20_000]))
HEADERS = st.lists(st.builds(core_pb2.HeaderValue, key=TEXT, raw_value=HEADER_VALUES, value=st.sampled_from(["", "", "text"])), max_size=12)
BODIES = st.one_of(st.binary(max_size=300), st.sampled_from([b"", bytes(127), bytes(128), bytes(70_000)]))
METADATA = st.sampled_from(
    [None, {}, {"envoy.lb": {"a": "b"}}, {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": ["1.2.3.4:5"]}}]
)


@st.composite
def requests(draw: st.DrawFn) -> pb.ProcessingRequest:
    """Of every kind, with everything Envoy may add."""
    message = pb.ProcessingRequest()
    end = draw(st.booleans())
    match draw(
        st.sampled_from(["request_headers", "response_headers", "request_body", "response_body", "request_trailers", "response_trailers"])
    ):
        case "request_headers" | "response_headers" as kind:
            headers = getattr(message, kind)
            headers.SetInParent()
            headers.end_of_stream = end
            if values := draw(HEADERS):
                headers.headers.headers.extend(values)
        case "request_body" | "response_body" as kind:
            body = getattr(message, kind)
            body.SetInParent()
            body.body, body.end_of_stream = draw(BODIES), end
        case kind:
            getattr(message, kind).SetInParent()
    metadata = draw(METADATA)
    if metadata is not None:
        message.metadata_context.SetInParent()
        for namespace, fields in metadata.items():
            message.metadata_context.filter_metadata[namespace].update(fields)
    if draw(st.booleans()):
        message.attributes["envoy.filters.http.ext_proc"].update({"request.time": draw(TEXT), "source.address": draw(TEXT)})
    if draw(st.booleans()):
        modes = draw(st.tuples(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 300]), st.sampled_from([0, 4, 5])))
        for name, mode in zip(MODES, modes, strict=True):
            setattr(message.protocol_config, name, mode)
    return message


def by_the_library(data: bytes) -> Event | None:
    """None: it refuses them."""
    try:
        return codec._decode(data)
    except ProtocolError:
        return None


@given(requests())
def test_messages_are_read_as_by_the_library(message: pb.ProcessingRequest) -> None:
    """Or left to it."""
    data = message.SerializeToString()
    event = wire.decode(data)
    assert event is None or event == by_the_library(data)


@given(st.data(), requests())
def test_damaged_messages_are_never_read_otherwise(data: st.DataObject, message: pb.ProcessingRequest) -> None:
    """Cut off, or with a byte changed: what the library refuses may be read only where it is in the attributes, which nobody has read yet."""
    whole = message.SerializeToString()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole)))]
    else:
        at = data.draw(st.integers(0, max(len(whole) - 1, 0)))
        damaged = whole[:at] + bytes((data.draw(st.integers(0, 255)),)) + whole[at + 1 :]
    event, expected = wire.decode(damaged), by_the_library(damaged)
    if event is not None and not message.attributes and not message.HasField("metadata_context"):
        assert event == expected


@pytest.mark.parametrize("kind", [b"\x0a", b"\x12", b"\x22"])
def test_a_length_without_end_is_none(kind: bytes) -> None:
    """Megabytes of it are given up after a few bytes, not added up for minutes."""
    endless = kind + b"\xff" * 4_000_000
    assert wire.decode(endless) is None
    assert log_wire.entries(endless) is None


@pytest.mark.parametrize("kind", ["request_headers", "request_body", "response_body"])
def test_the_frequent_messages_need_no_library(kind: str) -> None:
    """As Envoy sends them: without a hint, and with the metadata we set ourselves on those of the answer."""
    message = pb.ProcessingRequest()
    getattr(message, kind).end_of_stream = True
    message.metadata_context.SetInParent()
    if kind == "request_headers":
        message.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/chat/completions")
        message.attributes["envoy.filters.http.ext_proc"].update({"request.time": "t", "source.address": "a"})
        message.protocol_config.request_body_mode = pb.FULL_DUPLEX_STREAMED
    elif kind == "response_body":
        message.metadata_context.filter_metadata["envoy.lb"].update({"x-gateway-destination-endpoint": "10.0.0.1:8000"})
    assert wire.decode(message.SerializeToString()) is not None


SIZES = st.one_of(st.integers(0, 300), st.integers(16_200, 16_500), st.integers(61_990, 62_000), st.just(2_100_000))
ROUTES = st.builds(
    Route,
    destination=st.sampled_from(["10.0.0.1:8000", "[fd00::1]:8000", ",".join(["10.0.0.1:8000"] * 20)]),
    decision_id=TEXT.map(DecisionId),
    set_headers=st.sampled_from([(), (("x-request-id", "abc"),), (("a", "é" * 100), ("b", ""))]),
)


@given(
    st.one_of(
        st.builds(ReplyRequestHeaders, ROUTES, SIZES),
        st.builds(ReplyRequestBody, SIZES.map(bytes), st.booleans()),
        st.builds(ReplyResponseBody, SIZES.map(bytes).map(memoryview), st.booleans()),
        st.sampled_from(
            [
                ContinueRequestBody(),
                ContinueRequestHeaders(),
                ContinueResponseBody(),
                ReplyRequestTrailers(),
                ReplyResponseHeaders(),
                ReplyResponseTrailers(),
            ]
        ),
    )
)
@example(ReplyRequestHeaders(Route("10.0.0.1:8000", DecisionId("")), 0))
def test_replies_are_written_as_by_the_library(reply: Reply) -> None:
    """Not byte by byte, because a map has no order: message by message."""
    written = wire.encode(reply)
    assert written is not None
    assert pb.ProcessingResponse.FromString(written) == pb.ProcessingResponse.FromString(codec._encode(reply))
