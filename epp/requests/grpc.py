"""Requests that are gRPC messages: vLLM's engine service, and Vertex AI's PredictionService, whose messages hold JSON.

A body is one frame: flag (1 byte), length (4, big endian), message. What is read becomes the fields that the same request has
over HTTP, so nothing behind this module knows of gRPC. A frame that is compressed or damaged is *unreadable*: the model
server answers for it. vLLM's service names no model and Vertex AI's body cannot be spliced: neither is rewritten
(spec/protocol.md 2.3.13, step 3). Pure; called by epp.requests.parsers.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from epp._proto import inference_pb2 as pb
from epp.domain import AnswerFormat, Api
from epp.requests.body import Body, decode
from epp.requests.chat import CHAT
from epp.requests.shape import Fields, Shape

_HEADER_BYTES: Final = 5
_M = TypeVar("_M", bound=Message)


class _UnreadableError(ValueError):
    """`str()` says why."""


def _message(body: bytes, kind: Callable[[], _M]) -> _M:
    if len(body) < _HEADER_BYTES:
        raise _UnreadableError("the body is no gRPC message")
    if body[0]:
        raise _UnreadableError("the gRPC message is compressed")
    size = int.from_bytes(body[1:_HEADER_BYTES], "big")
    if size != len(body) - _HEADER_BYTES:
        raise _UnreadableError("the body is not one whole gRPC message")
    message = kind()
    try:
        message.ParseFromString(body[_HEADER_BYTES:])
    except DecodeError as error:
        raise _UnreadableError(f"unmarshaling {message.DESCRIPTOR.name}: {error}") from None
    return message


def _reader(read: Callable[[bytes], Body]) -> Callable[[bytes], Body]:
    """`read`, with what it cannot read turned into an unreadable body."""

    def tolerant(body: bytes) -> Body:
        try:
            return read(body)
        except _UnreadableError as error:
            return Body({}, str(error))

    return tolerant


def _generate(body: bytes) -> Body:
    request = _message(body, pb.GenerateRequest)
    sampling = request.sampling_params
    said: dict[str, object] = {}
    if sampling.HasField("max_tokens"):
        said["max_tokens"] = sampling.max_tokens
    logprobs: dict[str, object] = {"prompt_logprobs": sampling.prompt_logprobs} if sampling.HasField("prompt_logprobs") else {}
    has_media = request.HasField("mm_inputs") or request.HasField("media_refs") or bool(request.extra_mm_inputs)
    api = Api.OPAQUE if has_media or sampling.HasField("truncate_prompt_tokens") else None
    fields: dict[str, object] = {"stream": request.stream}
    if request.WhichOneof("input") == "text":
        return Body({**fields, **logprobs, "prompt": request.text, "sampling_params": said}, None, api or Api.COMPLETIONS)
    return Body({**fields, "token_ids": list(request.tokenized.input_ids), "sampling_params": said | logprobs}, None, api)


def _embed(body: bytes) -> Body:
    request = _message(body, pb.EmbedRequest)
    return Body({"token_ids": list(request.tokenized.input_ids), "sampling_params": {}})


def _prediction(body: bytes) -> Body:
    return decode(_message(body, pb.PredictionRequest).http_body.data)


def _max_tokens(fields: Fields) -> object:
    sampling = fields.get("sampling_params")
    return sampling.get("max_tokens") if isinstance(sampling, dict) else None


def _engine(read: Callable[[bytes], Body], answer: AnswerFormat) -> Shape:
    return Shape(
        Api.GENERATE,
        max_tokens=_max_tokens,
        read=_reader(read),
        model_is_text=False,
        rewritable=False,
        answer=answer,
    )


def _vertex(api: Api) -> Shape:
    return Shape(
        api,
        max_tokens=CHAT.max_tokens,
        read=_reader(_prediction),
        model_is_text=False,
        rewritable=False,
        answer=AnswerFormat.HTTP_BODY,
    )


VLLM_GENERATE: Final = _engine(_generate, AnswerFormat.VLLM_GENERATE)
VLLM_EMBED: Final = _engine(_embed, AnswerFormat.VLLM_EMBED)
VERTEX_CHAT: Final = _vertex(Api.CHAT)
VERTEX_RAW: Final = _vertex(Api.OPAQUE)
"""Which API of the model server stands behind a raw prediction, nobody but its operator knows."""
