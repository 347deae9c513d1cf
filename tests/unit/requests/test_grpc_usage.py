"""Usage of answers that are gRPC messages (spec/protocol.md 2.3.11, 4.2.3 G10 to G13)."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp._proto import inference_pb2 as pb
from epp.domain import AnswerFormat, Usage
from epp.requests.grpc_usage import MESSAGE_BYTES, GrpcUsageReader


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def chunk(**counts: int) -> bytes:
    return framed(pb.GenerateResponse(chunk=pb.GenerateStreamChunk(**counts)).SerializeToString())


COMPLETE = framed(
    pb.GenerateResponse(complete=pb.GenerateComplete(prompt_tokens=7, completion_tokens=10, cached_tokens=4)).SerializeToString()
)
STREAM = chunk(prompt_tokens=7, completion_tokens=1, cached_tokens=4) + chunk(completion_tokens=6) + chunk(completion_tokens=10)
EXPECTED = Usage(7, 10, 17, 4)


def body(text: bytes) -> bytes:
    return framed(pb.HttpBody(data=text).SerializeToString())


JSON_USAGE = json.dumps({"usage": {"prompt_tokens": 7, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}}).encode()


def read(answer: AnswerFormat, *chunks: bytes) -> Usage | None:
    reader = GrpcUsageReader(answer)
    for data in chunks:
        reader.feed(data)
    return reader.finish()


@pytest.mark.parametrize(
    ("answer", "data", "expected"),
    [
        (AnswerFormat.VLLM_GENERATE, COMPLETE, EXPECTED),
        (AnswerFormat.VLLM_GENERATE, STREAM, EXPECTED),
        (AnswerFormat.VLLM_GENERATE, STREAM + COMPLETE, EXPECTED),
        (AnswerFormat.VLLM_GENERATE, framed(b"\xff\xff") + COMPLETE, EXPECTED),
        (AnswerFormat.VLLM_GENERATE, framed(b"\x1f\x8b", flag=1) + COMPLETE, EXPECTED),
        (AnswerFormat.VLLM_GENERATE, framed(bytes(MESSAGE_BYTES)) + COMPLETE, EXPECTED),
        (AnswerFormat.VLLM_GENERATE, b"", None),
        (AnswerFormat.VLLM_GENERATE, framed(b""), None),
        (AnswerFormat.VLLM_GENERATE, COMPLETE[:-1], None),
        (AnswerFormat.VLLM_EMBED, framed(pb.EmbedResponse(prompt_tokens=7).SerializeToString()), Usage(7, None, 7, None)),
        (AnswerFormat.HTTP_BODY, body(JSON_USAGE), EXPECTED),
        (AnswerFormat.HTTP_BODY, body(JSON_USAGE[:20]) + body(JSON_USAGE[20:]), EXPECTED),
        (AnswerFormat.HTTP_BODY, body(b'data: {"x": 1}\n\n') + body(b"data: " + JSON_USAGE + b"\n\n"), EXPECTED),
        (AnswerFormat.HTTP_BODY, framed(b"\xff"), None),
    ],
)
def test_usage(answer: AnswerFormat, data: bytes, expected: Usage | None) -> None:
    """The last count is the answer's; what cannot be read is passed over."""
    assert read(answer, data) == expected


@given(st.lists(st.integers(0, len(STREAM) + len(COMPLETE)), max_size=8))
def test_chunk_borders_mean_nothing(cuts: list[int]) -> None:
    """Envoy cuts where it likes."""
    data = STREAM + COMPLETE
    borders = [0, *sorted(cuts), len(data)]
    chunks = [data[begin:end] for begin, end in itertools.pairwise(borders)]
    assert read(AnswerFormat.VLLM_GENERATE, *chunks) == EXPECTED


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Nothing an engine sends is an error."""
    for answer in (AnswerFormat.VLLM_GENERATE, AnswerFormat.VLLM_EMBED, AnswerFormat.HTTP_BODY):
        read(answer, data)
