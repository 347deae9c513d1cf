"""Parsers: which one reads a path, what it finds, and what it refuses (spec/protocol.md 2.3.12 and 1.5.1)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp import names
from epp.domain import Api
from epp.errors import BadRequestError, ConfigError
from epp.requests import RequestParsers
from epp.requests.scan import SCANNED_CHARACTERS

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PARSERS = RequestParsers()


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/chat/completions", Api.CHAT),
        ("/openai/deployments/x/chat/completions/?api-version=1", Api.CHAT),
        ("/v1/completions", Api.COMPLETIONS),
        ("/xcompletions", Api.COMPLETIONS),
        ("/v1/chat/completions/render", Api.OPAQUE),
        ("/v1/completions/render", Api.OPAQUE),
        ("/v1/embeddings", Api.OPAQUE),
        ("/v1/responses", Api.RESPONSES),
        ("/v1/conversations", Api.OPAQUE),
        ("/v1/images/generations", Api.OPAQUE),
    ],
)
def test_longest_suffix_of_the_path_chooses_the_api(path: str, api: Api) -> None:
    """The query is no part of the path, a trailing slash does not matter, and segments have no borders."""
    request = PARSERS.parse({":path": path}, body(**CHAT, prompt="p", input="i", items=[]))
    assert (request.api, request.model, request.path) == (api, "m", path.partition("?")[0])


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({":path": "/a/completions", "x-original-path": "/b/completions"}, "/a/completions"),
        ({"x-original-path": "/b/completions", "x-forwarded-path": "/c/completions"}, "/b/completions"),
        ({"x-forwarded-path": "/c/completions"}, "/c/completions"),
        ({}, "/v1/completions"),
    ],
)
def test_path_comes_from_the_first_header_that_has_one(headers: dict[str, str], path: str) -> None:
    """Gateways hide the path in different places."""
    assert PARSERS.parse(headers, body(model="m", prompt="p")).path == path


def test_unclaimed_path_passes_through_untouched() -> None:
    """What no parser claims is routed without a look at its body."""
    request = PARSERS.parse({":path": "/v1/audio/transcriptions"}, b"\x00 not json")
    assert (request.api, request.model, request.body, request.size_bytes, request.unreadable) == (Api.OPAQUE, "", None, 10, None)


def test_without_a_fallback_an_unclaimed_path_is_refused() -> None:
    """A configuration that names parsers gets exactly those."""
    with pytest.raises(BadRequestError, match=r"^no parser registered matching path suffix for: /v1/other$"):
        RequestParsers(["openai-parser"]).parse({":path": "/v1/other?x=1"}, b"{}")


def test_parsers_after_the_fallback_are_ignored() -> None:
    """A fallback takes everything."""
    request = RequestParsers(["passthrough-parser", "openai-parser"]).parse({":path": "/v1/completions"}, body(model="m", prompt="p"))
    assert request.api is Api.OPAQUE


def test_unknown_parser_type_is_a_configuration_error() -> None:
    """The sentence names what there is."""
    with pytest.raises(ConfigError, match=r"'opnai-parser'; there are openai-parser, anthropic-parser, "):
        RequestParsers(["opnai-parser"])


REFUSALS = [
    ("/v1/chat/completions", {"model": "m"}, "invalid chat completions request: must have valid messages field"),
    ("/v1/chat/completions", {"model": "m", "messages": []}, "invalid chat completions request: must have valid messages field"),
    ("/v1/chat/completions", {"model": "m", "messages": "hi"}, "invalid chat completions request: must have valid messages field"),
    ("/v1/completions", {"model": "m"}, "invalid completions request: must have prompt field"),
    ("/v1/completions", {"model": "m", "prompt": ""}, "invalid completions request: must have prompt field"),
    ("/v1/completions", {"model": "m", "prompt": 5}, "invalid completions request: must have prompt field"),
    ("/v1/completions", {"model": "m", "prompt": 0, "prompt_embeds": "x"}, "invalid completions request: must have prompt field"),
    ("/v1/embeddings", {"model": "m"}, "invalid embeddings request: must have input field"),
    ("/v1/responses", {"model": "m"}, "invalid responses request: must have input field"),
    ("/v1/conversations", {"model": "m"}, "invalid conversations request: must have items field"),
    ("/v1/images/generations", {"model": "m"}, "invalid images generations request: must have prompt field"),
    ("/v1/completions", {"prompt": "p", "model": 5}, "model not found in request body"),
    ("/v1/chat/completions/render", {"model": ["m"]}, "model not found in request body"),
]


@pytest.mark.parametrize("named", [{}, {"model": ""}, {"model": None}], ids=["missing", "empty", "null"])
def test_a_request_without_a_model_is_for_the_base_model(named: dict[str, object]) -> None:
    """vLLM answers it, so nobody is refused who would have been answered; a rewrite gives it a name."""
    body = json.dumps({"prompt": "p", **named}).encode()
    assert PARSERS.parse({":path": "/v1/completions"}, body).served_model == ""
    assert PARSERS.parse({":path": "/v1/completions", names.MODEL_REWRITE_HEADERS[0]: "m"}, body).served_model == "m"


@pytest.mark.parametrize(("path", "fields", "message"), REFUSALS)
def test_bodies_no_model_server_could_serve_are_refused_with_llm_d_s_words(path: str, fields: dict[str, object], message: str) -> None:
    """Rows 4 to 9 of the table of failures."""
    with pytest.raises(BadRequestError) as refusal:
        PARSERS.parse({":path": path}, body(**fields))
    assert refusal.value.message == message


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"model":"m",}', b'{"model":"m"} x', b"[1]", b'"x"', b"null", b'{"a":01}', b'{"a":"\x01"}', b"\xff"]
)
def test_bodies_that_are_no_json_object_are_refused(text: bytes) -> None:
    """Row 3: what neither msgspec nor Python reads, and what is no object."""
    with pytest.raises(BadRequestError, match=r"^error unmarshaling request bodyMap: "):
        PARSERS.parse({":path": "/v1/completions"}, text)


def test_embeddings_of_prompts_stand_in_for_a_prompt() -> None:
    """The engine accepts `prompt_embeds` without a prompt, so it is routed."""
    assert PARSERS.parse({}, body(model="m", prompt_embeds="AAAA")).api is Api.COMPLETIONS


def test_a_rewrite_header_names_the_model_the_body_does_not() -> None:
    """Gateways may leave the model out of the body; a model of a wrong type is an error all the same."""
    headers = {":path": "/v1/completions", "x-llm-d-model-name-rewrite": "target"}
    assert PARSERS.parse(headers, body(prompt="p")).model == "target"
    assert PARSERS.parse(headers, body(prompt="p", model="own")).model == "own"
    with pytest.raises(BadRequestError):
        PARSERS.parse(headers, body(prompt="p", model=5))


def test_what_routing_needs_is_read_from_the_body() -> None:
    """Streaming, salt and the limit of the answer; the newer name of the limit wins, and a boolean is no number."""
    request = PARSERS.parse(
        {":path": "/v1/chat/completions"}, body(**CHAT, stream=True, max_tokens=5, max_completion_tokens=7, cache_salt="s")
    )
    assert (request.stream, request.max_tokens, request.cache_salt) == (True, 7, "s")
    request = PARSERS.parse({":path": "/v1/chat/completions"}, body(**CHAT, stream=1, max_tokens=True, cache_salt=5))
    assert (request.stream, request.max_tokens, request.cache_salt) == (False, None, None)


def test_key_order_of_the_client_survives() -> None:
    """Tools are rendered into the prompt in the order the client wrote them."""
    request = PARSERS.parse(
        {":path": "/v1/chat/completions"}, b'{"z":1,"model":"m","messages":[{"role":"user","content":"x"}],"a":{"y":1,"b":2}}'
    )
    assert json.dumps(request.body) == '{"z": 1, "model": "m", "messages": [{"role": "user", "content": "x"}], "a": {"y": 1, "b": 2}}'


DEEP = "[" * 20_000 + "]" * 20_000
UNREADABLE = {
    "lone surrogate": b'{"model":"m","prompt":"\\ud800","stream":true}',
    "number too large": b'{"prompt":"p","temperature":1e999,"model":"m","stream":true}',
    "NaN": b'{"prompt":"p","temperature":NaN,"model":"m","stream":true}',
    "byte order mark": b'\xef\xbb\xbf{"prompt":"p","model":"m","stream":true}',
    "UTF-16": '{"prompt":"p","model":"m","stream":true}'.encode("utf-16"),
    "invalid UTF-8": b'{"prompt":"\xff\xfe","model":"m","stream":true}',
    "nested too deep": f'{{"prompt":{DEEP},"x":{{"model":"inner"}},"model":"\\u006d","stream":true}}'.encode(),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_bodies_only_a_tolerant_reader_accepts_are_routed_by_model(text: bytes) -> None:
    """A model server may accept them: they keep their model and their bytes, and get no tokens."""
    request = PARSERS.parse({":path": "/v1/completions"}, text)
    assert (request.api, request.model, request.stream, request.body, request.size_bytes) == (Api.COMPLETIONS, "m", True, None, len(text))
    assert request.unreadable


@pytest.mark.parametrize("name", ["model", "cache_salt"])
def test_half_a_surrogate_pair_in_a_name_reaches_no_page_of_metrics(name: str) -> None:
    """A model's name becomes a label and a line of the decision log: both are UTF-8, so one such request ended every later scrape."""
    request = PARSERS.parse({":path": "/v1/completions"}, b'{"model":"m","prompt":"p","%s":"a\\ud800"}' % name.encode())
    assert getattr(request, name) == "a?"


@pytest.mark.parametrize("text", [b'{"model":5,"prompt":"\\ud800"}', f'{{"prompt":5,"x":{DEEP}}}'.encode(), b'{"model":"m","prompt":NaN}'])
def test_tolerance_ends_where_the_request_itself_is_at_fault(text: bytes) -> None:
    """A number as model or as prompt is refused whatever else is odd about the body."""
    with pytest.raises(BadRequestError):
        PARSERS.parse({":path": "/v1/completions"}, text)


def test_only_the_beginning_of_a_body_nested_too_deep_is_searched() -> None:
    """Searching all of 64 MiB would hold every other request up for seconds; engines refuse such nesting anyway."""
    deep = "[" * SCANNED_CHARACTERS
    with pytest.raises(BadRequestError, match=r"model not found|must have prompt"):
        PARSERS.parse({":path": "/v1/completions"}, f'{{"x":{deep},"prompt":"p","model":"m"}}'.encode())
    assert PARSERS.parse({":path": "/v1/completions"}, f'{{"prompt":"p","model":"m","x":{deep}'.encode()).model == "m"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.integers(0, 200))
def test_any_body_is_either_read_or_refused(noise: bytes, at: int) -> None:
    """Malformed at any byte: a request or a BadRequestError, never anything else."""
    good = body(**CHAT, tools=[{"a": "é", "b": [1.5, None]}])
    for text in (noise, good[:at] + noise + good[at:], good[:at]):
        try:
            request = PARSERS.parse({":path": "/v1/chat/completions"}, text)
        except BadRequestError:
            continue
        assert request.body is None or json.loads(text)["messages"]
