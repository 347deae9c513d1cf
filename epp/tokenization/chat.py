"""A chat request to token ids: everything vLLM does between the request and the tokenizer (spec/kv.md 4.3).

Order of steps as in the engine: tools, template arguments, template, content format, messages, rendering, encoding. Pure
but for the local date that a template may ask for; called once a request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.completions import checked_ids
from epp.tokenization.content_format import ContentFormat
from epp.tokenization.encoder import Encoder
from epp.tokenization.lax import bool_field, choice_field, int_field, object_field
from epp.tokenization.limits import limits_of
from epp.tokenization.messages import check_messages, conversation, has_media, without_developer_role
from epp.tokenization.template import ChatTemplate, compiled
from epp.tokenization.tools import tools_of

Fields = Mapping[str, object]

_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# "Nothing said" in the engine's merging of template arguments.
_UNSET: Final = (None, "auto")
# Arguments of the engine's own functions: a request that names one of them breaks the call.
_TAKEN: Final = frozenset(("conversation", "model_config", "tokenizer", "self"))
# Arguments that transformers' apply_chat_template keeps for itself; the template never sees them.
_SWALLOWED: Final = frozenset(("padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"))
_NOT_VARIABLES: Final = _SWALLOWED | {
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
}


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What the server's flags and the model folder contribute (spec/kv.md 8.18)."""

    own_template: str | None = None
    """--chat-template: stands above the model's."""
    model_template: str | Mapping[str, str] | None = None
    """The tokenizer's template, or several by name."""
    processor_template: str | None = None
    """The processor's template, which wins while there are no tools."""
    special_tokens: Fields = field(default_factory=dict)
    content_format: ContentFormat | None = None
    """None: read off the template."""
    default_kwargs: Fields = field(default_factory=dict)
    exclude_tools_when_choice_none: bool = False
    trust_request_template: bool = False
    add_generation_prompt: bool = True
    """What a request means that does not say."""


class ChatRenderer:
    """Renders the chats of one model. Immutable, thread-safe."""

    def __init__(self, settings: ChatSettings, encoder: Encoder, max_model_len: int | None) -> None:
        self._settings = settings
        self._encoder = encoder
        self._max_model_len = max_model_len

    def token_ids(self, body: Fields) -> list[int]:
        """Token ids of the conversation. Raises NoTokensError."""
        check_cache_salt(body.get("cache_salt"))
        tools = tools_of(body, exclude_when_choice_none=self._settings.exclude_tools_when_choice_none)
        add_special_tokens = bool_field(body, "add_special_tokens", default=False)
        arguments = self._arguments(body, tools)
        limits = limits_of(body, lambda: _max_output(body), self._max_model_len)
        if (reused := self._reused_ids(body)) is not None:
            check_messages(body.get("messages"))
            return reused
        text = self._text(body, arguments)
        if arguments.get("tokenize"):
            return limits.cut(self._encoder.encode(text))
        return limits.encode(self._encoder, text, add_special_tokens=add_special_tokens)

    def text(self, body: Fields) -> str:
        """The rendered prompt. Raises NoTokensError."""
        tools = tools_of(body, exclude_when_choice_none=self._settings.exclude_tools_when_choice_none)
        return self._text(body, self._arguments(body, tools))

    def _text(self, body: Fields, arguments: Fields) -> str:
        self._check(arguments)
        tools, documents = _objects(arguments, "tools"), _objects(arguments, "documents")
        given = body.get("chat_template") or self._settings.own_template
        # The content format is that of the template the request or the server names, also where the arguments name another.
        template = self._template(given, tools)
        content_format = self._settings.content_format or template.content_format
        if (other := given or arguments.get("chat_template")) is not given:
            template = self._template(other, tools)
        messages = conversation(body.get("messages"), content_format)
        return template.render(
            messages if template.knows_developer else without_developer_role(messages),
            tools=tools,
            documents=documents,
            add_generation_prompt=bool(arguments.get("add_generation_prompt")),
            continue_final_message=bool(arguments.get("continue_final_message")),
            variables={
                **self._settings.special_tokens,
                **{k: v for k, v in arguments.items() if k in template.variables and k not in _NOT_VARIABLES},
            },
        )

    def _arguments(self, body: Fields, tools: list[Fields] | None) -> dict[str, object]:
        """What the engine calls the template with: defaults, then the request's kwargs, then its top-level fields."""
        kwargs = object_field(body, "chat_template_kwargs") or {}
        template = body.get("chat_template")
        if template is not None and not isinstance(template, str):
            raise refused("chat_template must be a string")
        if not self._settings.trust_request_template and (template is not None or kwargs.get("chat_template") is not None):
            raise refused("chat_template in the request needs --trust-request-chat-template")
        if body.get("continue_final_message") and body.get("add_generation_prompt"):
            raise refused("continue_final_message and add_generation_prompt are both set")
        effort = choice_field(body, "reasoning_effort", _EFFORTS)
        own: dict[str, object] = {
            "add_generation_prompt": bool_field(body, "add_generation_prompt", default=self._settings.add_generation_prompt),
            "continue_final_message": bool_field(body, "continue_final_message", default=False),
            "documents": _documents(body.get("documents")),
            "reasoning_effort": effort,
        }
        if effort is not None and "enable_thinking" not in kwargs:
            own["enable_thinking"] = effort != "none"
        said = {**kwargs, **{key: value for key, value in own.items() if value not in _UNSET}}
        arguments = {**self._settings.default_kwargs, **({} if tools is None else {"tools": tools})}
        arguments.update((key, value) for key, value in said.items() if value not in _UNSET)
        return arguments

    def _check(self, arguments: Fields) -> None:
        if taken := _TAKEN.intersection(arguments):
            raise refused(f"chat_template_kwargs must not hold {min(taken)}")
        if arguments.get("return_assistant_tokens_mask"):
            raise refused("return_assistant_tokens_mask cannot be served")
        if arguments.get("continue_final_message") and arguments.get("add_generation_prompt"):
            raise refused("continue_final_message needs add_generation_prompt false")
        if arguments.get("tokenize") and _SWALLOWED.intersection(arguments):
            raise NoTokensError(Reason.UNSUPPORTED, "chat_template_kwargs that steer the tokenizer")

    def _template(self, given: object, tools: object) -> ChatTemplate:
        """The template that applies (spec/kv.md 4.3.4)."""
        named = self._settings.model_template
        if isinstance(given, str):
            source: str | None = named.get(given, given) if isinstance(named, Mapping) else given
        elif tools is None and self._settings.processor_template is not None:
            source = self._settings.processor_template
        elif isinstance(named, Mapping):
            source = named.get("tool_use", named.get("default")) if tools is not None else named.get("default")
        else:
            source = named
        if source is None:
            raise refused("the model has no chat template")
        return compiled(source)

    def _reused_ids(self, body: Fields) -> list[int] | None:
        """Ids a prefill stage forwarded, which replace the rendering (spec/kv.md 4.5)."""
        transfer = object_field(body, "kv_transfer_params")
        ids = transfer.get("prompt_token_ids") if transfer else None
        if bool_field(body, "echo", default=False) or ids is None or has_media(body.get("messages")):
            return None
        if not isinstance(ids, list) or not ids or any(type(member) is not int for member in ids):
            raise refused("kv_transfer_params.prompt_token_ids must be a list of token ids")
        return checked_ids(ids, self._encoder)


def check_cache_salt(salt: object) -> None:
    """Raises NoTokensError for a salt the engine refuses (spec/kv.md 4.7)."""
    if salt is None:
        return
    if not isinstance(salt, str) or not 0 < len(salt) <= 128 or any(character in salt for character in "@/\\\0"):
        raise refused("cache_salt must have 1 to 128 characters, none of them '@', '/', '\\' or NUL")


def _max_output(body: Fields) -> int | None:
    newer = int_field(body, "max_completion_tokens")
    return int_field(body, "max_tokens") if newer is None else newer


def _documents(documents: object) -> object:
    if documents is None:
        return None
    if not isinstance(documents, list) or not all(
        isinstance(document, dict) and all(isinstance(value, str) for value in document.values()) for document in documents
    ):
        raise refused("documents must be a list of objects with string values")
    return documents


def _objects(arguments: Fields, name: str) -> list[object] | None:
    """Tools or documents: None, or a list of objects."""
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(member, dict) for member in value):
        raise refused(f"{name} must be a list of objects")
    return value
