"""Token ids computed here: a chat template and a fast tokenizer, proven equal to transformers at load (architecture decision 6).

Loading asks a child process that imports transformers (handover.py); this process never does. Short prompts are
rendered and encoded on the event loop, long ones, and those that bring their own template, in the executor: encoding releases
the GIL. Everything is immutable after `start`.
"""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from epp.domain import Api, InferenceRequest
from epp.errors import ConfigError
from epp.tokenization.absent import NoTokensError, Reason, TokenizerError
from epp.tokenization.anthropic import Manners, manners, read_messages
from epp.tokenization.backend import Prompts
from epp.tokenization.chat import Chat, ChatRenderer, ChatSettings, check_cache_salt
from epp.tokenization.chat_completions import read_chat
from epp.tokenization.completions import completion_prompts
from epp.tokenization.encoder import Encoder, load_fastokens, load_tokenizers
from epp.tokenization.flight import SingleFlight
from epp.tokenization.generate import generate_prompts
from epp.tokenization.handover import EFFECTIVE_TOKENIZER, MISTRAL, Handover, prove
from epp.tokenization.pieces import Pieces
from epp.tokenization.responses import read_responses
from epp.tokenization.strangers import Strangers
from epp.tokenization.template import STEPS, TooManyStepsError, compiled
from epp.tokenization.vocabularies import PACKAGES, materialise

_log = logging.getLogger(__name__)

# Bodies up to this size are tokenized on the event loop, in 2 ms at most: where their prefix was seen, an executor round trip costs more.
INLINE_BYTES: Final = 48 * 1024

# Steps a template may take on the event loop; one that needs more starts again in the executor.
INLINE_STEPS: Final = 20_000

_SCRATCH_PREFIX: Final = "epp-tokenizer-"
# Container runtimes mount it writable whatever the root is; the largest tokenizer.json takes half of its 64 MiB.
_MEMORY_FOLDER: Final = "/dev/shm"  # noqa: S108  # only a folder of our own is made in it

# Fields that often differ between requests with the same prompt, and never shape it.
_UNSHAPING: Final = frozenset(("stream", "stream_options", "temperature", "top_p", "seed", "user", "metadata", "request_id"))

# Model types whose chats engines render with code instead of a template (spec/kv.md 4.4).
OTHER_RENDERERS: Final = frozenset(
    (
        "gpt_oss",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "kimi_k3",
        "kimi_audio",
        "cohere2",
        "cohere_asr",
        "inkling",
        "terratorch",
        MISTRAL,
    )
)


@dataclass(frozen=True)
class LocalTokenizerConfig:
    """`token-producer.parameters.local`: which vocabulary, and the engine's flags that shape prompts (spec/kv.md 8.18)."""

    path: str | None = None
    """A folder with the tokenizer of the model, or a hub name whose files are in the local cache; exclusive with `package`."""
    package: str | None = None
    """A package of vocabularies.PACKAGES that brings one."""
    chat_template: str | None = None
    """--chat-template: a file, or the template itself."""
    content_format: Literal["auto", "string", "openai"] = "auto"
    """--chat-template-content-format."""
    default_chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    exclude_tools_when_tool_choice_none: bool = False
    enable_auto_tool_choice: bool | None = None
    """--enable-auto-tool-choice with a --tool-call-parser; None: not known, so chats with tools count as served."""
    trust_request_chat_template: bool = False
    max_model_len: int | None = None
    """Context length in tokens; without it prompts cut to it have no tokens here, and too long ones are not recognised."""
    add_generation_prompt: bool | None = None
    """What a chat means that does not say; None: true, as in vLLM."""
    lora_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.path is None) == (self.package is None):
            raise ConfigError("token-producer.local: give exactly one of path and package")
        if self.package is not None and self.package not in PACKAGES:
            raise ConfigError(f"token-producer.local.package: {self.package!r} is none of {', '.join(PACKAGES)}")
        if self.content_format not in ("auto", "string", "openai"):
            raise ConfigError(f"token-producer.local.contentFormat: {self.content_format!r} is none of auto, string, openai")
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError("token-producer.local.maxModelLen: must be at least 1")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What serving needs once loading is over."""

    encoder: Encoder
    chat: ChatRenderer
    manners: Manners
    other_renderer: str | None
    """Model type whose chats are rendered by code; None: by a template."""


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A place for one file while it is loaded. Pods may have a read-only root and no /tmp; memory that can be written they have."""
    try:
        return tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX)
    except FileNotFoundError:
        return tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=_MEMORY_FOLDER)


class LocalTokenizer:
    """The tokenizer of one model in this process."""

    def __init__(self, config: LocalTokenizerConfig) -> None:
        """Raises ConfigError for a chat template that is neither a file nor a template."""
        self._config = config
        self._own_template = _read_template(config.chat_template)
        self._executor: Executor | None = None
        self._loaded: _Loaded | None = None
        self._flight = SingleFlight()
        self._strangers = Strangers()

    @property
    def lora_modules(self) -> frozenset[str]:
        """Adapter names the operator configured."""
        return frozenset(self._config.lora_modules)

    async def start(self, executor: Executor | None) -> None:
        """Load and prove the tokenizer, some seconds. Raises TokenizerError."""
        self._executor = executor
        try:
            with _scratch_folder() as scratch:
                await self._start_in(Path(scratch))
        except OSError as error:
            raise TokenizerError(f"{self._name}: a temporary folder is needed to load the tokenizer: {error}") from None

    async def _start_in(self, scratch: Path) -> None:
        loop = asyncio.get_running_loop()
        folder = Path(self._config.path or scratch)
        if self._config.package is not None:
            await loop.run_in_executor(self._executor, materialise, self._config.package, folder, None)
        handover = await prove(folder, scratch)
        if handover.template_differs:
            raise TokenizerError(
                f"{folder}: transformers {handover.transformers_version} renders the chat template differently: {handover.template_differs}"
            )
        try:
            self._loaded = await loop.run_in_executor(self._executor, self._load, handover, scratch / EFFECTIVE_TOKENIZER)
        except Exception as error:
            # Both tokenizer libraries raise plain Exceptions for files they cannot read.
            raise TokenizerError(f"{folder}: its tokenizer cannot be loaded: {error}") from error

    @property
    def _name(self) -> str:
        return str(self._config.path or self._config.package)

    def prompts(self, request: InferenceRequest) -> Prompts | Awaitable[Prompts]:
        """Exact ids of each prompt; at once for short bodies. Raises NoTokensError, here or there."""
        assert request.body is not None, "Tokenization asks only about readable bodies"
        if request.size_bytes <= INLINE_BYTES and not _brings_template(request.body):
            try:
                return self._prompts(request, INLINE_STEPS)
            except TooManyStepsError:
                _log.debug("a short conversation takes the template more than %d steps", INLINE_STEPS)
        key = (request.api, request.path, msgspec.json.encode({k: v for k, v in request.body.items() if k not in _UNSHAPING}))
        return self._flight.run(key, lambda: self._in_executor(request))

    async def _in_executor(self, request: InferenceRequest) -> Prompts:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._prompts, request)

    async def close(self) -> None:
        """End the process that renders templates of requests."""
        self._strangers.close()

    def _prompts(self, request: InferenceRequest, steps: int = STEPS) -> Prompts:
        loaded, body = self._loaded, request.body
        assert loaded is not None, "start() comes first"
        assert body is not None, "Tokenization asks only about readable bodies"
        if request.api is Api.GENERATE:
            return generate_prompts(body, loaded.encoder, self._config.max_model_len)
        if loaded.other_renderer is not None and (request.api is not Api.COMPLETIONS or loaded.other_renderer == MISTRAL):
            raise NoTokensError(Reason.OTHER_RENDERER, f"engines render prompts of {loaded.other_renderer} with code of their own")
        if request.api is Api.COMPLETIONS:
            check_cache_salt(body.get("cache_salt"))
            return Prompts(completion_prompts(body, loaded.encoder, self._config.max_model_len))
        chat = _chat(request.api, body, loaded)
        chat.steps = steps
        try:
            return Prompts([loaded.chat.token_ids(chat)])
        except NoTokensError as error:
            if error.reason is not Reason.MULTIMODAL or not (ids := loaded.chat.ids_before_media(chat)):
                raise
            return Prompts([ids], partial=error)

    def _load(self, handover: Handover, tokenizer_json: Path) -> _Loaded:
        if handover.fastokens_differs is None:
            tokenizer, library = load_fastokens(tokenizer_json), "fastokens"
        else:
            tokenizer, library = load_tokenizers(tokenizer_json), f"tokenizers, as fastokens differs: {handover.fastokens_differs}"
        config = self._config
        settings = ChatSettings(
            max_model_len=config.max_model_len,
            own_template=self._own_template,
            model_template=handover.chat_template,
            processor_template=handover.processor_template,
            special_tokens=handover.special_tokens,
            content_format=None if config.content_format == "auto" else config.content_format,
            default_kwargs=config.default_chat_template_kwargs,
            exclude_tools_when_choice_none=config.exclude_tools_when_tool_choice_none,
            auto_tool_choice=config.enable_auto_tool_choice,
            trust_request_template=config.trust_request_chat_template,
            add_generation_prompt=config.add_generation_prompt is not False,
        )
        # The special tokens of the templates are those that conversations are built of.
        printed = "".join((*settings.sources(), *handover.special_tokens.values()))
        pieces = Pieces(token for token in handover.isolated if token in printed)
        encoder = Encoder(tokenizer, handover.prefix, handover.suffix, handover.max_chars_per_token, handover.max_token_id, pieces)
        other_renderer = handover.model_type if handover.model_type in OTHER_RENDERERS else None
        _log.info(
            "tokenizer %s loaded: %s proven against transformers %s",
            config.path or config.package,
            library,
            handover.transformers_version,
        )
        self._warm_up(encoder, settings)
        renderer = ChatRenderer(settings, encoder, self._strangers.template)
        return _Loaded(encoder, renderer, manners(renderer), other_renderer)

    def _warm_up(self, encoder: Encoder, settings: ChatSettings) -> None:
        """Compile template and split patterns now rather than in the first request; a broken template is only logged here."""
        encoder.encode("The quick brown fox. " * 64)
        for source in settings.sources():
            try:
                compiled(source)
            except NoTokensError as error:
                _log.warning("chats of %s have no tokens: %s", self._config.path or self._config.package, error.detail)


def _chat(api: Api, body: Mapping[str, object], loaded: _Loaded) -> Chat:
    settings = loaded.chat.settings
    match api:
        case Api.MESSAGES:
            return read_messages(body, settings, loaded.manners)
        case Api.RESPONSES:
            return read_responses(body, settings)
        case _:
            return read_chat(body, settings)


def _brings_template(body: Mapping[str, object]) -> bool:
    """A template of the client's may run for long: it stays off the event loop."""
    kwargs = body.get("chat_template_kwargs")
    return body.get("chat_template") is not None or (isinstance(kwargs, dict) and kwargs.get("chat_template") is not None)


def _read_template(template: str | None) -> str | None:
    """A file's content, or the text itself where it can be nothing else (as vLLM reads --chat-template)."""
    if template is None or any(character in template for character in "{}\n"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token-producer.local.chatTemplate: {template}: {error}") from None
