"""Token ids computed here: a chat template and a fast tokenizer, proven equal to transformers at load (architecture decision 7).

Loading asks a child process that imports transformers (handover.py); this process never does. Short prompts are
rendered and encoded on the event loop, long ones, and those that bring their own template, in the executor: encoding releases
the GIL. Everything is immutable after `start`.
"""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from epp.domain import Api, InferenceRequest, TokenIds
from epp.errors import ConfigError
from epp.tokenization.absent import NoTokensError, Reason, TokenizerError
from epp.tokenization.chat import ChatRenderer, ChatSettings, check_cache_salt
from epp.tokenization.completions import completion_prompts
from epp.tokenization.encoder import Encoder, load_fastokens, load_tokenizers
from epp.tokenization.handover import EFFECTIVE_TOKENIZER, Handover, prove
from epp.tokenization.template import compiled
from epp.tokenization.vocabularies import PACKAGES, materialise

_log = logging.getLogger(__name__)

# Bodies up to this size are tokenized on the event loop: an executor round trip costs more than they do.
INLINE_BYTES: Final = 16 * 1024

# Model types whose chats engines render with code instead of a template (spec/kv.md 4.4).
OTHER_RENDERERS: Final = frozenset(
    ("gpt_oss", "deepseek_v32", "deepseek_v4", "deepseek_v41", "kimi_k3", "kimi_audio", "cohere2", "cohere_asr", "inkling", "terratorch")
)


@dataclass(frozen=True)
class LocalTokenizerConfig:
    """`token-producer.parameters.local`: which vocabulary, and the engine's flags that shape prompts (spec/kv.md 8.18)."""

    path: str | None = None
    """A folder with the tokenizer of the model; exclusive with `package`."""
    package: str | None = None
    """A package of vocabularies.PACKAGES that brings one."""
    chat_template: str | None = None
    """--chat-template: a file, or the template itself."""
    content_format: Literal["auto", "string", "openai"] = "auto"
    """--chat-template-content-format."""
    default_chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    exclude_tools_when_tool_choice_none: bool = False
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
    other_renderer: str | None
    """Model type whose chats are rendered by code; None: by a template."""


class LocalTokenizer:
    """The tokenizer of one model in this process."""

    def __init__(self, config: LocalTokenizerConfig) -> None:
        """Raises ConfigError for a chat template that is neither a file nor a template."""
        self._config = config
        self._own_template = _read_template(config.chat_template)
        self._executor: Executor | None = None
        self._loaded: _Loaded | None = None

    @property
    def lora_modules(self) -> frozenset[str]:
        """Adapter names the operator configured."""
        return frozenset(self._config.lora_modules)

    async def start(self, executor: Executor | None) -> None:
        """Load and prove the tokenizer, some seconds. Raises TokenizerError."""
        self._executor = executor
        try:
            with tempfile.TemporaryDirectory(prefix="epp-tokenizer-") as scratch:
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

    def prompts(self, request: InferenceRequest) -> Sequence[TokenIds] | Awaitable[Sequence[TokenIds]]:
        """Exact ids of each prompt; at once for short bodies. Raises NoTokensError, here or there."""
        assert request.body is not None, "Tokenization asks only about readable bodies"
        if request.size_bytes <= INLINE_BYTES and not _brings_template(request.body):
            return self._prompts(request.api, request.body)
        return asyncio.get_running_loop().run_in_executor(self._executor, self._prompts, request.api, request.body)

    async def close(self) -> None:
        """Nothing to give back."""

    def _prompts(self, api: Api, body: Mapping[str, object]) -> Sequence[TokenIds]:
        loaded = self._loaded
        assert loaded is not None, "start() comes first"
        check_cache_salt(body.get("cache_salt"))
        if api is Api.COMPLETIONS:
            return completion_prompts(body, loaded.encoder, self._config.max_model_len)
        if loaded.other_renderer is not None:
            raise NoTokensError(Reason.OTHER_RENDERER, f"engines render chats of {loaded.other_renderer} without a template")
        return [loaded.chat.token_ids(body)]

    def _load(self, handover: Handover, tokenizer_json: Path) -> _Loaded:
        if handover.fastokens_differs is None:
            tokenizer, library = load_fastokens(tokenizer_json), "fastokens"
        else:
            tokenizer, library = load_tokenizers(tokenizer_json), f"tokenizers, as fastokens differs: {handover.fastokens_differs}"
        encoder = Encoder(tokenizer, handover.prefix, handover.suffix, handover.max_chars_per_token, handover.max_token_id)
        config = self._config
        settings = ChatSettings(
            own_template=self._own_template,
            model_template=handover.chat_template,
            processor_template=handover.processor_template,
            special_tokens=handover.special_tokens,
            content_format=None if config.content_format == "auto" else config.content_format,
            default_kwargs=config.default_chat_template_kwargs,
            exclude_tools_when_choice_none=config.exclude_tools_when_tool_choice_none,
            trust_request_template=config.trust_request_chat_template,
            add_generation_prompt=config.add_generation_prompt is not False,
        )
        other_renderer = handover.model_type if handover.model_type in OTHER_RENDERERS else None
        _log.info(
            "tokenizer %s loaded: %s proven against transformers %s",
            config.path or config.package,
            library,
            handover.transformers_version,
        )
        self._warm_up(encoder, settings)
        return _Loaded(encoder, ChatRenderer(settings, encoder, config.max_model_len), other_renderer)

    def _warm_up(self, encoder: Encoder, settings: ChatSettings) -> None:
        """Compile template and split patterns now rather than in the first request; a broken template is only logged here."""
        encoder.encode("The quick brown fox. " * 64)
        sources = settings.model_template.values() if isinstance(settings.model_template, Mapping) else [settings.model_template]
        for source in (self._own_template, settings.processor_template, *sources):
            if source is not None:
                try:
                    compiled(source)
                except NoTokensError as error:
                    _log.warning("chats of %s have no tokens: %s", self._config.path or self._config.package, error.detail)


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
