"""A conversation to token ids: everything vLLM does between a chat and the tokenizer (spec/kv.md 4.3).

Three APIs bring conversations, each in its own spelling (chat_completions, anthropic, responses); here they are all one
`Chat`. Order of steps as in the engine: template arguments, template, content format, messages, rendering, encoding. Pure
but for the local date that a template may ask for; called once a request.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Final

from epp.domain import TokenIds
from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.completions import checked_ids
from epp.tokenization.content_format import ContentFormat
from epp.tokenization.encoder import Encoder
from epp.tokenization.limits import Limits
from epp.tokenization.messages import Accepted, conversation, has_media, without_developer_role, without_media
from epp.tokenization.template import STEPS, Template, compiled

Fields = Mapping[str, object]

# Stand for media; private characters, so that nothing in a template is equal to them.
_STAND_INS: Final = ("\ue000", "\ue001")
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

    max_model_len: int | None = None
    """Context length in tokens; None: not known."""

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
    auto_tool_choice: bool | None = None
    """--enable-auto-tool-choice with a --tool-call-parser: without, the engine refuses chats that may call tools. None: not known."""
    trust_request_template: bool = False
    add_generation_prompt: bool = True
    """What a request means that does not say."""

    def sources(self) -> list[str]:
        """The text of every template that may apply, but for those of requests."""
        models = self.model_template.values() if isinstance(self.model_template, Mapping) else [self.model_template]
        default = self.default_kwargs.get("chat_template")
        return [source for source in (self.own_template, self.processor_template, *models, default) if isinstance(source, str)]


@dataclass(slots=True)
class Chat:
    """One conversation, whatever API it came by, checked as far as that API checks it."""

    messages: Sequence[Accepted]
    tools: list[Fields] | None
    """As the template sees them; None: there are none."""
    limits: Limits
    template: str | None = None
    """The request's own."""
    kwargs: Fields = field(default_factory=dict)
    """The request's chat_template_kwargs."""
    fields: Fields = field(default_factory=dict)
    """The template arguments that are fields of their own in the API; they win over `kwargs`. None and "auto" say nothing."""
    add_special_tokens: bool = False
    transfer: Fields | None = None
    """kv_transfer_params, where they count: they may hold the ids a prefill stage forwarded (spec/kv.md 4.5)."""
    steps: int = STEPS
    """What the template may spend."""


class ChatRenderer:
    """Renders the chats of one model. Immutable, thread-safe."""

    def __init__(self, settings: ChatSettings, encoder: Encoder, foreign: Callable[[str], Template] = compiled) -> None:
        """`foreign` gives the template of a text that came with a request."""
        self.settings = settings
        self._encoder = encoder
        self._foreign = foreign
        self._own_sources = frozenset(settings.sources())

    def token_ids(self, chat: Chat) -> TokenIds:
        """Token ids of the conversation. Raises NoTokensError."""
        arguments = self._arguments(chat)
        if (reused := self._reused_ids(chat)) is not None:
            return reused
        text = self._text(chat, arguments)
        if arguments.get("tokenize"):
            return chat.limits.cut(self._encoder.encode(text))
        return chat.limits.encode(self._encoder, text, add_special_tokens=chat.add_special_tokens)

    def ids_before_media(self, chat: Chat) -> TokenIds:
        """Exact ids of the beginning of a conversation with media, up to some place in front of the first; maybe none.

        Rendered with media as the template sees them, and with two texts in their place, the prompts are equal up to the first medium at
        most, and what is equal does not depend on what the engine puts there. It is encoded up to its last isolated token: beyond, ids
        depend on what follows (pieces.py). Raises NoTokensError where the engine refuses the rest of the request, or cuts it from the left.
        """
        if chat.limits.keep is not None:
            raise NoTokensError(Reason.MULTIMODAL, "the prompt holds media and is cut to a length")
        arguments = self._arguments(chat)
        texts = [self._text(replace(chat, messages=without_media(chat.messages, stand_in)), arguments) for stand_in in _STAND_INS]
        if self._format(chat, arguments.get("tools")) == "openai":
            texts.append(self._text(chat, arguments, media=True))
        common = commonprefix(texts)  # noqa: RUF071 - character by character is what is wanted
        ids = self._encoder.encode(common[: self._encoder.pieces.last_cut(common)])
        return array("I", [*self._encoder.prefix, *ids]) if chat.add_special_tokens else ids

    def text(self, chat: Chat) -> str:
        """The rendered prompt. Raises NoTokensError."""
        return self._text(chat, self._arguments(chat))

    def _format(self, chat: Chat, tools: object) -> ContentFormat:
        """That of the template the request or the server names, also where the arguments name another."""
        return self.settings.content_format or self.template(chat.template or self.settings.own_template, tools).content_format

    def _text(self, chat: Chat, arguments: Fields, *, media: bool = False) -> str:
        self._check(arguments)
        tools, documents = _objects(arguments, "tools"), _objects(arguments, "documents")
        template = self.template(chat.template or self.settings.own_template or arguments.get("chat_template"), tools)
        messages = conversation(chat.messages, self._format(chat, tools), media=media)
        return template.render(
            messages if template.knows_developer else without_developer_role(messages),
            tools=tools,
            documents=documents,
            add_generation_prompt=bool(arguments.get("add_generation_prompt")),
            continue_final_message=bool(arguments.get("continue_final_message")),
            steps=chat.steps,
            variables={
                **self.settings.special_tokens,
                **{k: v for k, v in arguments.items() if k in template.variables and k not in _NOT_VARIABLES},
            },
        )

    def _arguments(self, chat: Chat) -> dict[str, object]:
        """What the engine calls the template with: defaults, then the request's kwargs, then its own fields."""
        kwargs = chat.kwargs
        if not self.settings.trust_request_template and (chat.template is not None or kwargs.get("chat_template") is not None):
            raise refused("chat_template in the request needs --trust-request-chat-template")
        said = {**kwargs, **{key: value for key, value in chat.fields.items() if value not in _UNSET}}
        effort = chat.fields.get("reasoning_effort")
        if effort is not None and "enable_thinking" not in kwargs:
            said["enable_thinking"] = effort != "none"
        arguments = {**self.settings.default_kwargs, **({} if chat.tools is None else {"tools": chat.tools})}
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

    def template(self, given: object, tools: object) -> Template:
        """The template that applies where the request or the server names `given` (spec/kv.md 4.3.4). Raises NoTokensError."""
        named = self.settings.model_template
        if isinstance(given, str):
            source: str | None = named.get(given, given) if isinstance(named, Mapping) else given
        elif tools is None and self.settings.processor_template is not None:
            source = self.settings.processor_template
        elif isinstance(named, Mapping):
            source = named.get("tool_use", named.get("default")) if tools is not None else named.get("default")
        else:
            source = named
        if source is None:
            raise refused("the model has no chat template")
        return compiled(source) if source in self._own_sources else self._foreign(source)

    def _reused_ids(self, chat: Chat) -> TokenIds | None:
        """Ids a prefill stage forwarded, which replace the rendering (spec/kv.md 4.5)."""
        ids = chat.transfer.get("prompt_token_ids") if chat.transfer else None
        if ids is None or has_media([message for message, _ in chat.messages]):
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


def _objects(arguments: Fields, name: str) -> list[object] | None:
    """Tools or documents: None, or a list of objects."""
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(member, dict) for member in value):
        raise refused(f"{name} must be a list of objects")
    return value
