"""Bodies read only as far as routing needs: the same requests and refusals as from whole bodies, nothing of their prompts."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from epp.domain import InferenceRequest
from epp.errors import BadRequestError
from epp.requests import RequestParsers
from epp.requests.parsers import PARSER_TYPES

TYPES = [name for name in PARSER_TYPES if name != "passthrough-parser"]
WHOLE = RequestParsers(TYPES)
OUTLINE = RequestParsers(TYPES, whole_bodies=False)

PATHS = sorted({f"/v1/{suffix.removeprefix('/')}" for name in TYPES if name != "vllmgrpc-parser" for suffix in PARSER_TYPES[name]})
READ = (
    "model",
    "stream",
    "priority",
    "cache_salt",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "sampling_params",
    "messages",
    "input",
    "items",
    "prompt",
    "prompt_embeds",
    "text",
    "input_ids",
    "lora_path",
    "extra_key",
)
KEYS = st.sampled_from(READ) | st.sampled_from(["temperature", "tools", "stream_options", ""]) | st.text(max_size=3)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["m", "\ud800"])
LIMITS = st.fixed_dictionaries({}, optional={"max_tokens": st.integers(0, 9), "max_new_tokens": st.integers(0, 9)})
VALUES = LIMITS | st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
HEADERS = st.sampled_from([{}, {"x-llm-d-model-name-rewrite": "target"}])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON objects as clients may write them: any order, keys twice, escapes, and what only a tolerant reader takes."""
    members = draw(st.lists(st.tuples(KEYS, VALUES), max_size=6))
    plain = draw(st.booleans())
    text = ",".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=plain)}" for key, value in members)
    return f"{{{text}}}".encode(errors="surrogatepass")


def outcome(parsers: RequestParsers, path: str, headers: dict[str, str], body: bytes) -> InferenceRequest | str:
    """The request without its body, or the words it is refused with."""
    try:
        request = parsers.parse({":path": path, **headers}, body)
    except BadRequestError as refusal:
        return refusal.message
    request.body = None
    request.unreadable = None
    return request


@given(st.sampled_from(PATHS), HEADERS, bodies())
@example("/v1/chat/completions", {}, b'{"model":"m","messages":["a"]}')
@example("/v1/chat/completions", {}, b'{"messages":[{}],"model":"m","model":"n","messages":[]}')
@example("/v1/completions", {}, b'{"mod\\u0065l":"m","prompt":"p","x":"\xff"}')
def test_a_body_says_the_same_whether_its_prompt_is_read_or_not(path: str, headers: dict[str, str], body: bytes) -> None:
    """Model, stream, limits, salt, priority, rewrite and refusal."""
    assert outcome(OUTLINE, path, headers, body) == outcome(WHOLE, path, headers, body)


@given(st.sampled_from(PATHS), bodies(), st.binary(max_size=4), st.integers(0, 200), st.integers(0, 4))
def test_damage_to_a_body_refuses_no_more_of_them(path: str, body: bytes, noise: bytes, at: int, lost: int) -> None:
    """What is passed over is the model server's to judge; everything else is said in the same words."""
    damaged = body[:at] + noise + body[at + lost :]
    whole, outline = outcome(WHOLE, path, {}, damaged), outcome(OUTLINE, path, {}, damaged)
    assert outline == whole or (isinstance(whole, str) and "bodyMap" in whole)


def test_nothing_is_made_of_prompts_nobody_reads() -> None:
    """A conversation of 220 KB costs its length in bytes, not its objects."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}] * 3
    body = json.dumps({"model": "m", "messages": messages, "tools": [{"type": "function"}], "max_tokens": 5}).encode()
    read = OUTLINE.parse({":path": "/v1/chat/completions"}, body).body
    assert read is not None
    assert sorted(read) == ["max_tokens", "messages", "model"]
    assert "hi" not in repr(read)


def test_a_body_nested_too_deep_to_read_is_routed_by_model() -> None:
    """Whatever the depth, the process lives and the model is found."""
    for depth in (500, 100_000):
        body = b'{"model":"m","messages":[{}],"x":' + b"[" * depth + b"]" * depth + b"}"
        assert OUTLINE.parse({":path": "/v1/chat/completions"}, body).model == "m"
