"""What each API's requests say: prompt, model, limits, and what no server could read (spec/protocol.md 2.3.12, spec/plugins.md 9.2)."""

import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp.domain import AnswerFormat, Api, InferenceRequest
from epp.errors import BadRequestError
from epp.plugins.reads_cache import reads_cache
from epp.requests import PARSER_TYPES, RequestParsers

RECORDED = json.loads((Path(__file__).parents[2] / "data/vllm-0.32.0/requests/requests.json").read_text())
ALL = RequestParsers([name for name in PARSER_TYPES if name != "passthrough-parser"] + ["passthrough-parser"])
GENERATE = "/vllm.grpc.engine.VllmEngine/Generate"
EMBED = "/vllm.grpc.engine.VllmEngine/Embed"
VERTEX = "/google.cloud.aiplatform.v1.PredictionService/"


def parsed(path: str, body: bytes | dict[str, object], **headers: str) -> InferenceRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ALL.parse({":path": path, **{key.replace("_", "-"): value for key, value in headers.items()}}, data)


def field(number: int, value: int | bytes) -> bytes:
    """One field as protobuf writes it: a number below 128, or bytes."""
    if isinstance(value, int):
        return bytes((number << 3, value)) if number < 16 else bytes((number << 3 & 0x7F | 0x80, number >> 4, value))
    return bytes((number << 3 | 2, len(value))) + value


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize(
    ("path", "body", "api", "model", "limit", "salt"),
    [
        ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 7}, Api.RESPONSES, "m", 7, None),
        ("/v1/messages", {"model": "m", "messages": [], "max_tokens": 7, "cache_salt": "s"}, Api.MESSAGES, "m", 7, "s"),
        ("/v1/messages/count_tokens", {"model": "m", "messages": []}, Api.OPAQUE, "m", None, None),
        ("/v1/messages/render", {"model": "m", "messages": []}, Api.OPAQUE, "m", None, None),
        ("/v1/responses/render", {"model": "m", "input": "hi"}, Api.OPAQUE, "m", None, None),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"max_tokens": 7}}, Api.GENERATE, "", 7, None),
        ("/inference/v1/generate", {"model": "m", "token_ids": [1], "cache_salt": "s"}, Api.GENERATE, "m", None, "s"),
        ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 7}, "extra_key": "s"}, Api.COMPLETIONS, "", 7, "s"),
        ("/generate", {"input_ids": [1, 2], "lora_path": "a"}, Api.COMPLETIONS, "a", None, None),
        ("/generate", {"input_ids": [1, 2], "image_data": "x"}, Api.OPAQUE, "", None, None),
        ("/v1/score", {"model": "m", "text_1": "a", "text_2": "b"}, Api.OPAQUE, "m", None, None),
        ("/v2/rerank", {"query": "q", "documents": []}, Api.OPAQUE, "", None, None),
        ("/pooling", {"model": "m", "input": "a"}, Api.OPAQUE, "m", None, None),
        ("/classify", {"model": "m", "input": "a"}, Api.OPAQUE, "m", None, None),
        ("/v1/chat/completions/batch", {"model": "m", "messages": [[]]}, Api.OPAQUE, "m", None, None),
        ("/v1/completions", {"model": "m", "prompt": "p", "max_tokens": 2.5}, Api.COMPLETIONS, "m", None, None),
        ("/v1/completions", {"model": "m", "prompt": "p", "max_tokens": True}, Api.COMPLETIONS, "m", None, None),
    ],
)
def test_what_json_says(path: str, body: dict[str, object], api: Api, model: str, limit: int | None, salt: str | None) -> None:
    """The prompt stays where it is rendered from; a model is demanded only where llm-d and vLLM both do."""
    request = parsed(path, body)
    assert (request.api, request.model, request.max_tokens, request.cache_salt) == (api, model, limit, salt)


@pytest.mark.parametrize(("given", "priority"), [(5, 5), (-1, -1), (True, None), ("5", None), (None, None)])
def test_priority(given: object, priority: int | None) -> None:
    """A whole number, as vLLM reads it."""
    assert parsed("/v1/completions", {"model": "m", "prompt": "p", "priority": given}).priority == priority


@pytest.mark.parametrize(("body", "prompt"), [({"text": "hi"}, "hi"), ({"input_ids": [1, 2]}, [1, 2]), ({"text": ["a", "b"]}, ["a", "b"])])
def test_prompts_of_sglang(body: dict[str, object], prompt: object) -> None:
    """Text and ids are what a completion's prompt is; ids go before text, as in SGLang."""
    request = parsed("/generate", body)
    assert request.body is not None
    assert request.body["prompt"] == prompt


def test_only_the_answer_to_count_tokens_is_of_no_interest() -> None:
    """Its stream may end with the request."""
    assert parsed("/v1/messages/count_tokens", {"model": "m", "messages": []}).skip_response
    assert not parsed("/v1/messages", {"model": "m", "messages": []}).skip_response


@pytest.mark.parametrize("recorded", RECORDED, ids=[recorded["name"] for recorded in RECORDED])
def test_every_recorded_request_is_read(recorded: dict[str, Any]) -> None:
    """What a real vLLM answered is understood: its model and its API."""
    request = parsed(recorded["path"], recorded["body"])
    assert request.body is not None
    assert request.model == recorded["body"]["model"]
    assert request.api is not Api.OPAQUE


# --- gRPC ------------------------------------------------------------------------------------------------------------


def test_vllm_generate_with_ids() -> None:
    """Tokenized input: the ids, packed or not, and what limits the answer."""
    message = field(1, b"id") + field(2, field(1, b"text") + field(2, bytes((5, 6, 7)))) + field(4, field(8, 9)) + field(5, 1)
    request = parsed(GENERATE, framed(message))
    assert (request.api, request.model, request.stream, request.max_tokens) == (Api.GENERATE, "", True, 9)
    assert request.body is not None
    assert request.body["token_ids"] == [5, 6, 7]
    assert request.answer is AnswerFormat.VLLM_GENERATE


def test_vllm_generate_with_text() -> None:
    """A text is tokenized by the engine as a completion's prompt is."""
    request = parsed(GENERATE, framed(field(3, b"hello")))
    assert (request.api, request.body and request.body["prompt"]) == (Api.COMPLETIONS, "hello")


@pytest.mark.parametrize(("logprobs", "reads"), [(b"", True), (field(22, 1), True), (field(23, 0), False), (field(23, 5), False)])
@pytest.mark.parametrize("prompt", [field(2, field(2, b"\x05")), field(3, b"hello")], ids=["ids", "text"])
def test_vllm_generate_with_logprobs_of_the_prompt(prompt: bytes, logprobs: bytes, reads: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Its prompt is computed anew, as with the same request over HTTP; logprobs of the answer change nothing."""
    assert reads_cache(parsed(GENERATE, framed(prompt + field(4, field(8, 9) + logprobs)))) is reads


@pytest.mark.parametrize(
    "more", [field(7, b""), field(10, b""), field(11, b""), field(4, field(27, 3))], ids=["image", "links", "images", "cut"]
)
def test_vllm_generate_whose_tokens_only_the_engine_knows(more: bytes) -> None:
    """Media, and a prompt cut by the engine: routed by load."""
    assert parsed(GENERATE, framed(field(2, field(2, b"\x05")) + more)).api is Api.OPAQUE


def test_vllm_embed() -> None:
    """Ids too."""
    request = parsed(EMBED, framed(field(2, field(2, bytes((5, 6))))))
    assert (request.api, request.body and request.body["token_ids"]) == (Api.GENERATE, [5, 6])


@pytest.mark.parametrize(("method", "api"), [("ChatCompletions", Api.CHAT), ("RawPredict", Api.OPAQUE), ("StreamRawPredict", Api.OPAQUE)])
def test_vertex(method: str, api: Api) -> None:
    """A chat within a message within a frame; a raw prediction may be anything."""
    chat = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = parsed(VERTEX + method, framed(field(1, b"projects/p") + field(2, field(1, b"application/json") + field(2, chat))))
    assert (request.api, request.model, request.answer) == (api, "m", AnswerFormat.HTTP_BODY)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no gRPC message"),
        (b"\0\0\0", "no gRPC message"),
        (framed(gzip.compress(b"x"), flag=1), "compressed"),
        (framed(b"abc")[:-1], "not one whole gRPC message"),
        (framed(b"") + framed(b""), "not one whole gRPC message"),
        (framed(b"\xff\xff\xff"), "unmarshaling GenerateRequest"),
    ],
)
def test_grpc_that_cannot_be_read_is_left_to_the_model_server(body: bytes, why: str) -> None:
    """It answers in the words of its protocol, which an HTTP status of ours would not be."""
    request = parsed(GENERATE, body)
    assert request.body is None
    assert why in (request.unreadable or "")


@pytest.mark.parametrize("path", [GENERATE, "/generate", VERTEX + "ChatCompletions"])
def test_what_cannot_be_rewritten_is_not(path: str) -> None:
    """A header that asks for another model changes no bytes that are no JSON with a model in it (spec/protocol.md 2.3.13, step 3)."""
    body = b'{"text": "hi"}' if path == "/generate" else framed(field(2, field(2, b'{"messages": [1]}')))
    assert parsed(path, body, x_llm_d_model_name_rewrite="other").target_model == ""


# --- bad input -------------------------------------------------------------------------------------------------------

CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "h\\u00e9 \\ud83d\\ude00"}], "n": 1.5e3, "x": [true, null, {}]}'
JSON_PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/inference/v1/generate", "/generate", "/v1/score"]


@given(st.sampled_from(JSON_PATHS), st.integers(0, len(CHAT)), st.binary(max_size=3), st.integers(0, 3))
@example("/v1/chat/completions", 0, b"", 0)
def test_any_damage_at_any_byte(path: str, at: int, inserted: bytes, removed: int) -> None:
    """A request, or the client's 400: nothing else, whatever byte is wrong."""
    with suppress(BadRequestError):
        parsed(path, CHAT[:at] + inserted + CHAT[at + removed :])


@given(st.sampled_from([GENERATE, EMBED, VERTEX + "ChatCompletions"]), st.binary(max_size=80))
def test_any_bytes_of_grpc(path: str, message: bytes) -> None:
    """Never an error but a 400 for what no reader of JSON accepts."""
    try:
        parsed(path, framed(message))
        parsed(path, message)
    except BadRequestError:
        assert "PredictionService" in path


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "oddity",
    [
        b'"\\ud800"',
        b"NaN",
        b"1e400",
        b'"\xff"',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a": 1, "a": 2}',
    ],
    ids=["lone surrogate", "NaN", "1e400", "no UTF-8", "deep", "equal keys"],
)
def test_what_an_engine_may_accept_is_routed(path: str, oddity: bytes) -> None:
    """With its model; without tokens where the exact content is not known."""
    request = parsed(path, b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "odd": ' + oddity + b"}")
    assert request.model == "m"


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "Multipart/Form-Data;boundary=x"])
def test_a_form_on_the_path_of_an_api_is_passed_through(content_type: str) -> None:
    """Files come as multipart/form-data, to which no parser has a claim whatever the path; media types know no case."""
    request = parsed("/v1/images/generations", b"--x\r\n...", content_type=content_type)
    assert (request.api, request.model) == (Api.OPAQUE, "")


def test_paths_of_clients_do_not_pile_up() -> None:
    """A client may ask for a new path each time."""
    parsers = RequestParsers()
    for number in range(3000):
        assert parsers.parse({":path": f"/{number}/v1/completions"}, b'{"model": "m", "prompt": "p"}').api is Api.COMPLETIONS
    assert len(parsers._by_path) <= 1024
