"""What an OpenAI request body asks for; refuses what vLLM refuses (spec/kv.md 4.2, 4.3, 4.7).

Pure. `api` decodes the JSON and calls `chat` or `completion` once a request. Fields without a meaning here (temperature,
stop, logprobs, ...) are accepted and ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.simulator.conversations import Conversation, conversation
from epp.simulator.errors import ApiError

# OpenAI's default for completions; a chat may fill the context.
DEFAULT_COMPLETION_TOKENS = 16

_SALT_MAX_LENGTH = 128
_SALT_FORBIDDEN = "@/\\\0"

Prompt = str | list[int] | Conversation
"""Text, token ids taken as they are, or a chat."""


@dataclass(slots=True)
class Ask:
    """One request body, read."""

    model: str
    prompts: Sequence[Prompt]
    """Each is an independent engine request with one choice in the answer."""
    add_special_tokens: bool
    """For text prompts; a conversation carries its own."""
    max_tokens: int | None
    ignore_eos: bool
    stream: bool
    include_usage: bool
    seed: int | None
    cache_salt: str | None
    reports_hit: bool
    """vllm_xargs {"kv_cache_report_mode": "full"}."""
    truncate: int | None
    """truncate_prompt_tokens; -1: as many as the model takes."""

    def truncated(self, tokens: list[int], max_model_len: int) -> list[int]:
        """The prompt after truncate_prompt_tokens: its end is kept (spec/kv.md 4.1)."""
        if self.truncate is None:
            return tokens
        keep = max_model_len - 1 if self.truncate == -1 else self.truncate
        return tokens[max(0, len(tokens) - keep) :]


def chat(body: Mapping[str, object]) -> Ask:
    """Read a body of /v1/chat/completions. Raises ApiError."""
    limit = _integer(body, "max_completion_tokens", minimum=1)
    if limit is None:
        limit = _integer(body, "max_tokens", minimum=1)
    return _ask(body, [conversation(body)], add_special_tokens=False, max_tokens=limit)


def completion(body: Mapping[str, object]) -> Ask:
    """Read a body of /v1/completions. Raises ApiError."""
    limit = _integer(body, "max_tokens", minimum=1)
    return _ask(
        body,
        _prompts(body.get("prompt")),
        add_special_tokens=body.get("add_special_tokens", True) is not False,
        max_tokens=DEFAULT_COMPLETION_TOKENS if limit is None else limit,
    )


def _ask(body: Mapping[str, object], prompts: Sequence[Prompt], *, add_special_tokens: bool, max_tokens: int | None) -> Ask:
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError("model must be a string", param="model")
    if body.get("n", 1) not in (None, 1):
        raise ApiError("this server gives one choice a prompt", param="n")
    options = body.get("stream_options")
    return Ask(
        model=model,
        prompts=prompts,
        add_special_tokens=add_special_tokens,
        max_tokens=max_tokens,
        ignore_eos=body.get("ignore_eos") is True,
        stream=body.get("stream") is True,
        include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        seed=_integer(body, "seed", minimum=None),
        cache_salt=_salt(body.get("cache_salt")),
        reports_hit=_reports_hit(body.get("vllm_xargs")),
        truncate=_integer(body, "truncate_prompt_tokens", minimum=-1),
    )


def _prompts(prompt: object) -> list[Prompt]:
    """One text, one list of ids, or a list of either."""
    if isinstance(prompt, str) and prompt:
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(type(item) is int for item in prompt):
            return [prompt]
        if all(_is_prompt(item) for item in prompt):
            return list(prompt)
    raise ApiError("prompt must be a non-empty text or list of token ids, or a list of these", param="prompt")


def _is_prompt(item: object) -> bool:
    return bool(item) and (isinstance(item, str) or (isinstance(item, list) and all(type(token) is int for token in item)))


def _integer(body: Mapping[str, object], key: str, *, minimum: int | None) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not int or (minimum is not None and value < minimum):
        raise ApiError(f"{key} must be an integer" + ("" if minimum is None else f" of at least {minimum}"), param=key)
    return value


def _reports_hit(extra_args: object) -> bool:
    """The one argument of vLLM's own that means something here."""
    if extra_args is None:
        return False
    if not isinstance(extra_args, Mapping):
        raise ApiError("vllm_xargs must be an object", param="vllm_xargs")
    return extra_args.get("kv_cache_report_mode") == "full"


def _salt(salt: object) -> str | None:
    if salt is None:
        return None
    if not isinstance(salt, str) or not 0 < len(salt) <= _SALT_MAX_LENGTH or any(sign in salt for sign in _SALT_FORBIDDEN):
        raise ApiError("cache_salt must be a string of 1 to 128 characters without @ / \\ and NUL", param="cache_salt")
    return salt
