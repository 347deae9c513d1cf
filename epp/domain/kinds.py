"""What kind of request, tokens, answer or end it is.

Compiled (setup.py), so that C finds a member at once; CPython 3.11 needs 0.1 us for each.
"""

from enum import Enum


class Api(Enum):
    """Which API a request speaks; decides how its prompt is found."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's, count_tokens included."""
    GENERATE = "generate"
    """vLLM's token-in path."""
    OPAQUE = "opaque"
    """Routed by model and load only: pass-through paths and APIs without a prompt of tokens."""


class AnswerFormat(Enum):
    """How an answer states what it used."""

    JSON = "json"
    """As a JSON document, or as server-sent events of such."""
    VLLM_GENERATE = "vllm-generate"
    """As messages of vLLM's engine service, Generate."""
    VLLM_EMBED = "vllm-embed"
    """The same, Embed."""
    HTTP_BODY = "http-body"
    """As JSON within gRPC messages of the type google.api.HttpBody."""


class TokenState(Enum):
    """How far the token ids of a request can be trusted."""

    EXACT = "exact"
    PARTIAL = "partial"
    """Some leading tokens of each prompt are the engine's; what follows is not known, or not exact."""
    ABSENT = "absent"
    """There are none: whoever needs tokens abstains."""


class EndCause(Enum):
    """Why a request is over."""

    FINISHED = "finished"
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    AGED_OUT = "aged_out"
    """No sign of the end arrived within the bounded age."""
