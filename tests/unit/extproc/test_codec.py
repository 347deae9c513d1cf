"""Messages to events and replies to messages."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp._proto import ext_proc_pb2 as pb
from epp.domain import DecisionId
from epp.errors import BadRequestError, ProtocolError, RequestError, ResourceExhaustedError, ServiceUnavailableError
from epp.extproc import codec, origin
from epp.extproc.events import (
    BodyMode,
    ContinueRequestBody,
    ContinueRequestHeaders,
    ContinueResponseBody,
    Reject,
    ReplaceResponseBody,
    Reply,
    ReplyBufferedRequest,
    ReplyRequestBody,
    ReplyRequestHeaders,
    ReplyRequestTrailers,
    ReplyResponseBody,
    ReplyResponseHeaders,
    ReplyResponseTrailers,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)


def request_headers(*headers: dict[str, object], subset: object = None) -> RequestHeaders:
    """What a request-headers message with these headers and this subset hint decodes to."""
    message = pb.ProcessingRequest()
    message.request_headers.SetInParent()
    for header in headers:
        message.request_headers.headers.headers.add(**header)
    if subset is not None:
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(
            {"x-gateway-destination-endpoint-subset": subset}  # type: ignore[dict-item]  # any JSON-like value
        )
    event = codec.decode(message.SerializeToString())
    assert isinstance(event, RequestHeaders)
    return event


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], {}),
        ([{"key": "X-Mixed-Case", "raw_value": b"V"}], {"x-mixed-case": "V"}),
        ([{"key": "a", "raw_value": b"raw", "value": "text"}], {"a": "raw"}),
        ([{"key": "a", "value": "text"}], {"a": "text"}),
        ([{"key": "a"}], {"a": ""}),
        ([{"key": "a", "raw_value": b"first"}, {"key": "A", "raw_value": b"last"}], {"a": "last"}),
        ([{"key": "a", "raw_value": "Käse".encode()}], {"a": "Käse"}),
        ([{"key": "a", "raw_value": b"\xff\xfe!"}], {"a": "\ufffd\ufffd!"}),
    ],
)
def test_header_forms(headers: list[dict[str, object]], expected: dict[str, str]) -> None:
    """Names are lower-cased, the last of equal names wins, raw_value goes before value, and no byte is too odd."""
    assert request_headers(*headers).headers == expected


@pytest.mark.parametrize(
    ("hint", "subset"),
    [
        (None, None),
        ([], ()),
        (["10.0.0.1:8000", "[fd00::1]:8000"], ("10.0.0.1:8000", "[fd00::1]:8000")),
        ("10.0.0.1:8000", ("10.0.0.1:8000",)),
        ("10.0.0.1:8000, 10.0.0.2:8000,", ("10.0.0.1:8000", "10.0.0.2:8000")),
        ("", ()),
        ([7, True, "10.0.0.1"], ("10.0.0.1",)),
        (8000, ()),
        ({"a": "b"}, ()),
    ],
)
def test_subset_forms(hint: object, subset: tuple[str, ...] | None) -> None:
    """List and comma string restrict the candidates; a form we cannot read restricts to nothing rather than to everything (D6)."""
    assert request_headers(subset=hint).subset == subset


def test_other_metadata_is_no_restriction() -> None:
    """Only the agreed namespace and key restrict."""
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = True
    message.metadata_context.filter_metadata["envoy.lb"].update({"x-gateway-destination-endpoint-subset": ["a:1"]})
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({"other": ["a:1"]})
    assert codec.decode(message.SerializeToString()) == RequestHeaders({}, end_of_stream=True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(":status", b"200")], 200),
        ([("status", b"500")], 500),
        ([("status", b"500"), (":status", b"200")], 200),
        ([(":status", b"")], None),
        ([("status", b"9" * 5000)], None),
        ([(":status", "²00".encode())], None),
        ([], None),
    ],
)
def test_response_status(headers: list[tuple[str, bytes]], status: int | None) -> None:
    """The status is read under both names in use (D4) and never trusted to be a number."""
    message = pb.ProcessingRequest()
    message.response_headers.end_of_stream = True
    for key, raw_value in headers:
        message.response_headers.headers.headers.add(key=key, raw_value=raw_value)
    assert codec.decode(message.SerializeToString()) == ResponseHeaders(status, end_of_stream=True)


@pytest.mark.parametrize(
    ("namespace", "value", "served"),
    [
        ("envoy.lb", {"x-gateway-destination-endpoint-served": "10.0.0.2:8000"}, "10.0.0.2:8000"),
        ("envoy.lb", {"x-gateway-destination-endpoint-served": ""}, None),
        ("envoy.lb", {"x-gateway-destination-endpoint-served": 7}, None),
        ("envoy.lb", {"x-gateway-destination-endpoint": "10.0.0.2:8000"}, None),
        ("other", {"x-gateway-destination-endpoint-served": "10.0.0.2:8000"}, None),
    ],
)
def test_the_endpoint_that_serves(namespace: str, value: dict[str, str | int], served: str | None) -> None:
    """Gateways that walk through a list of endpoints tell which one it became."""
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders())
    message.metadata_context.filter_metadata[namespace].update(value)
    assert codec.decode(message.SerializeToString()) == ResponseHeaders(None, end_of_stream=False, served=served)


def test_the_other_messages() -> None:
    """Bodies and trailers of both directions."""
    message = pb.ProcessingRequest()
    message.request_body.body = b"\x00\xff"
    assert codec.decode(message.SerializeToString()) == RequestBody(b"\x00\xff", end_of_stream=False)
    message.response_body.end_of_stream = True
    assert codec.decode(message.SerializeToString()) == ResponseBody(b"", end_of_stream=True)
    message.request_trailers.SetInParent()
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({"x-gateway-destination-endpoint-subset": []})
    assert codec.decode(message.SerializeToString()) == RequestTrailers(())
    message.response_trailers.SetInParent()
    assert codec.decode(message.SerializeToString()) == ResponseTrailers()


def test_body_modes_are_read_only_when_told() -> None:
    """A first message without protocol_config leaves the modes open; one with an empty one says NONE."""
    message = pb.ProcessingRequest()
    message.request_headers.SetInParent()
    assert codec.decode(message.SerializeToString()) == RequestHeaders({}, end_of_stream=False)
    message.protocol_config.response_body_mode = pb.FULL_DUPLEX_STREAMED
    assert codec.decode(message.SerializeToString()) == RequestHeaders(
        {}, end_of_stream=False, request_body_mode=BodyMode.NONE, response_body_mode=BodyMode.FULL_DUPLEX_STREAMED
    )


def test_messages_of_a_newer_envoy_are_named() -> None:
    """An unknown kind of message or body mode is an error that says so."""
    with pytest.raises(ProtocolError, match="of a kind unknown to this version"):
        codec.decode(b"")
    message = pb.ProcessingRequest()
    message.request_headers.SetInParent()
    message.protocol_config.request_body_mode = 17  # type: ignore[assignment]  # a number the stub does not know
    with pytest.raises(ProtocolError, match="body mode 17 is unknown"):
        codec.decode(message.SerializeToString())


def test_a_filter_that_only_observes_is_named_with_the_remedy() -> None:
    """observability_mode ignores every reply: nobody would ever be routed, so it is an error and no silence."""
    message = pb.ProcessingRequest(observability_mode=True)
    message.request_headers.SetInParent()
    with pytest.raises(ProtocolError, match="observability_mode is on"):
        codec.decode(message.SerializeToString())


@pytest.mark.parametrize(
    ("time", "address", "expected"),
    [
        ("2026-11-23T18:00:00.000001Z", "10.0.0.9:4711", "1795456800000001000|10.0.0.9:4711"),
        ("2026-11-23T18:00:00.5Z", "10.0.0.9:4711", "1795456800500000000|10.0.0.9:4711"),
        ("2026-11-23T18:00:00Z", "[::1]:4711", "1795456800000000000|[::1]:4711"),
        ("", "10.0.0.9:4711", None),
        ("2026-11-23T18:00:00Z", "", None),
        ("yesterday", "10.0.0.9:4711", None),
    ],
)
def test_origin(time: str, address: str, expected: str | None) -> None:
    """What the filter's request_attributes say of a request's beginning, to the microsecond; anything unexpected is no origin."""
    message = pb.ProcessingRequest()
    message.request_headers.SetInParent()
    message.attributes["envoy.filters.http.ext_proc"].update({"request.time": time, "source.address": address})
    event = codec.decode(message.SerializeToString())
    assert isinstance(event, RequestHeaders)
    assert event.attributes is not None
    assert origin.from_attributes(event.attributes) == expected


@given(st.binary(max_size=64))
def test_garbage(data: bytes) -> None:
    """Any bytes are an event or a ProtocolError."""
    with suppress(ProtocolError):
        codec.decode(data)


ROUTE = Route("10.0.0.1:8000", DecisionId("d-1"), set_headers=(("x-request-id", "r-1"),))


def test_request_headers_reply() -> None:
    """Header and metadata name the same destination, in raw values; the route cache is cleared; the decision's id travels along."""
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyRequestHeaders(ROUTE, 17)))
    response = message.request_headers.response
    assert response.clear_route_cache
    assert not response.HasField("body_mutation")
    assert [(o.header.key, o.header.raw_value, o.header.value) for o in response.header_mutation.set_headers] == [
        ("x-gateway-destination-endpoint", b"10.0.0.1:8000", ""),
        ("Content-Length", b"17", ""),
        ("x-request-id", b"r-1", ""),
    ]
    assert {namespace: dict(value.struct_value.items()) for namespace, value in message.dynamic_metadata.fields.items()} == {
        "envoy.lb": {"x-gateway-destination-endpoint": "10.0.0.1:8000"},
        "epp": {"decision": "d-1"},
    }


def test_no_content_length_without_a_body() -> None:
    """A header-only request gets none, as with llm-d."""
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyRequestHeaders(ROUTE, 0)))
    assert [o.header.key for o in message.request_headers.response.header_mutation.set_headers] == [
        "x-gateway-destination-endpoint",
        "x-request-id",
    ]


@pytest.mark.parametrize("data", [b"", b"abc", memoryview(b"abc")])
@pytest.mark.parametrize("end_of_stream", [False, True])
def test_body_replies_are_streamed_responses(data: bytes | memoryview, *, end_of_stream: bool) -> None:
    """Even an empty chunk is a streamed response: in full duplex Envoy kills the stream on any other form."""
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyRequestBody(data, end_of_stream)))
    assert message.request_body.response.body_mutation.WhichOneof("mutation") == "streamed_response"
    streamed = message.request_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (bytes(data), end_of_stream)
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyResponseBody(data, end_of_stream)))
    assert message.response_body.response.body_mutation.streamed_response == streamed


def test_response_headers_reply() -> None:
    """The debug header says that the answer went through us; nothing else changes."""
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyResponseHeaders()))
    [option] = message.response_headers.response.header_mutation.set_headers
    assert (option.header.key, option.header.raw_value) == ("x-went-into-resp-headers", b"true")
    assert not message.response_headers.response.clear_route_cache
    assert not message.HasField("dynamic_metadata")


def test_scores_stand_beside_the_destination() -> None:
    """--emit-endpoint-scores: every scored candidate, as llm-d tells them (spec/protocol.md 1.2 #4)."""
    route = Route("10.0.0.1:8000", DecisionId("d-1"), scores={"10.0.0.1:8000": 2.5, "10.0.0.2:8000": 0.0})
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyRequestHeaders(route, 0)))
    fields = message.dynamic_metadata.fields["envoy.lb"].struct_value
    assert fields["x-gateway-destination-endpoint"] == "10.0.0.1:8000"
    scores = fields.fields["x-gateway-destination-endpoint-scores"].struct_value.fields
    assert {endpoint: score.number_value for endpoint, score in scores.items()} == {"10.0.0.1:8000": 2.5, "10.0.0.2:8000": 0.0}


@pytest.mark.parametrize(("body", "length"), [(None, []), (b"other", [("Content-Length", b"5")])])
def test_a_buffered_request_is_routed_by_the_reply_to_its_body(body: bytes | None, length: list[tuple[str, bytes]]) -> None:
    """Destination, metadata and route cache as in a header reply; Content-Length only with a body of ours, which it must fit."""
    message = pb.ProcessingResponse.FromString(codec.encode(ReplyBufferedRequest(Route("10.0.0.1:8000", DecisionId("d-1"), body))))
    response = message.request_body.response
    assert response.clear_route_cache
    assert [(o.header.key, o.header.raw_value) for o in response.header_mutation.set_headers] == [
        ("x-gateway-destination-endpoint", b"10.0.0.1:8000"),
        *length,
    ]
    assert response.body_mutation.WhichOneof("mutation") == (None if body is None else "body")
    assert response.body_mutation.body == (body or b"")
    assert set(message.dynamic_metadata.fields) == {"envoy.lb", "epp"}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(ContinueRequestHeaders(), "request_headers"), (ContinueRequestBody(), "request_body"), (ContinueResponseBody(), "response_body")],
)
def test_empty_replies(reply: Reply, kind: str) -> None:
    """A message that goes on as it is gets a reply of its kind and nothing else."""
    message = pb.ProcessingResponse.FromString(codec.encode(reply))
    assert message.WhichOneof("response") == kind
    assert not getattr(message, kind).HasField("response")


@pytest.mark.parametrize(("whole", "length"), [(True, [("Content-Length", b"3")]), (False, [])])
def test_a_replaced_answer(*, whole: bool, length: list[tuple[str, bytes]]) -> None:
    """Other bytes outside of full duplex; only a whole answer has a length to correct."""
    response = pb.ProcessingResponse.FromString(codec.encode(ReplaceResponseBody(b"abc", whole))).response_body.response
    assert response.body_mutation.body == b"abc"
    assert [(o.header.key, o.header.raw_value) for o in response.header_mutation.set_headers] == length


def test_trailer_replies() -> None:
    """Trailers of both directions go on unchanged."""
    assert pb.ProcessingResponse.FromString(codec.encode(ReplyRequestTrailers())).WhichOneof("response") == "request_trailers"
    assert pb.ProcessingResponse.FromString(codec.encode(ReplyResponseTrailers())).WhichOneof("response") == "response_trailers"


@pytest.mark.parametrize(
    ("error", "status", "body", "headers"),
    [
        (BadRequestError("model not found in request body"), 400, b"inference error: BadRequest - model not found in request body", []),
        (
            ServiceUnavailableError("no candidates", dropped_reason="rejected-no-endpoints"),
            503,
            b"inference error: ServiceUnavailable - no candidates",
            [("x-llm-d-request-dropped-reason", b"rejected-no-endpoints")],
        ),
        (
            ResourceExhaustedError("full", dropped_reason="rejected-saturated"),
            429,
            b"inference error: ResourceExhausted - full",
            [("x-llm-d-request-dropped-reason", b"rejected-saturated")],
        ),
        (BadRequestError("unexpected \ud800"), 400, b"inference error: BadRequest - unexpected ?", []),
    ],
)
def test_rejections(error: RequestError, status: int, body: bytes, headers: list[tuple[str, bytes]]) -> None:
    """An error becomes llm-d's immediate response: status, text and the reason of a drop (spec/protocol.md 1.5)."""
    response = pb.ProcessingResponse.FromString(codec.encode(Reject(error))).immediate_response
    assert (response.status.code, response.body) == (status, body)
    assert [(o.header.key, o.header.raw_value) for o in response.headers.set_headers] == headers
    assert response.HasField("headers") == bool(headers)
