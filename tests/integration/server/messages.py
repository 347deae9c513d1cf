"""The messages Envoy sends, and what came back in a word each."""

from collections.abc import Sequence

from epp._proto import ext_proc_pb2 as pb


def request_headers(
    *,
    end_of_stream: bool = False,
    case: str = "d-1",
    mode: pb.BodySendMode = pb.FULL_DUPLEX_STREAMED,
    response_mode: pb.BodySendMode = pb.FULL_DUPLEX_STREAMED,
) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end_of_stream
    message.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/completions")
    message.request_headers.headers.headers.add(key="x-case", raw_value=case.encode())
    message.protocol_config.request_body_mode = mode
    message.protocol_config.response_body_mode = response_mode
    return message


def request_body(body: bytes, *, end_of_stream: bool = False) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=end_of_stream))


REQUEST_TRAILERS = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())


def response_headers(*, end_of_stream: bool = False, content_type: str = "text/event-stream") -> pb.ProcessingRequest:
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders(end_of_stream=end_of_stream))
    message.response_headers.headers.headers.add(key="content-type", raw_value=content_type.encode())
    return message


def response_body(body: bytes, *, end_of_stream: bool = False) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=end_of_stream))


RESPONSE_TRAILERS = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())


def summary(replies: Sequence[pb.ProcessingResponse]) -> list[str]:
    """One word a reply: kind, bytes of body, and a bar where it ends the stream."""
    words = []
    for reply in replies:
        kind = reply.WhichOneof("response")
        assert kind is not None
        if kind.endswith("_body"):
            mutation = getattr(reply, kind).response.body_mutation
            streamed = mutation.streamed_response
            words.append(f"{kind} {len(streamed.body)}{'|' if streamed.end_of_stream else ''}")
        elif kind == "immediate_response":
            words.append(f"immediate {reply.immediate_response.status.code}")
        else:
            words.append(kind)
    return words


def bodies(replies: Sequence[pb.ProcessingResponse]) -> bytes:
    """What the replies let go on of the request's body."""
    return b"".join(reply.request_body.response.body_mutation.streamed_response.body for reply in replies)
