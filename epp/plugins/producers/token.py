"""token-producer: where token ids come from (spec/plugins.md 8.3, architecture "Names that are ours").

A declaration only: finding tokens may need I/O, so it happens before the scheduling cycle (epp.tokenization, called by the
director), and plugins find the result in `cycle.tokens`. epp.app builds the backend from these parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from epp.plugins.declared import Declared
from epp.scheduling.interfaces import DataKey
from epp.scheduling.params import NOT_YET, Between, Duration
from epp.scheduling.registry import PluginType, Role

TYPE = "token-producer"
DEFAULT_TIMEOUT = Duration(5.0)
DEFAULT_MM_TIMEOUT = Duration(30.0)

TOKENIZED_PROMPT: DataKey[None] = DataKey("TokenizedPrompt", TYPE)
"""Stands for `cycle.tokens`. There is one token producer, whatever its name: llm-d's trap of a named one that nobody reads is not copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmBackend:
    """Ask a vLLM server over HTTP."""

    url: str = "http://localhost:8000"
    timeout: Duration = DEFAULT_TIMEOUT
    mm_timeout: Duration = DEFAULT_MM_TIMEOUT
    """For requests with content parts."""
    mode: Literal["render", "tokenize", "auto"] = "render"
    """Which endpoint; auto: /tokenize where the server does not render."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: {self.url!r} must begin with http:// or https://")
        if self.timeout <= 0 or self.mm_timeout <= 0:
            raise ValueError("timeout, mmTimeout: must be above 0s")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBackend:
    """Tokenize in this process; the settings are those of the vLLM servers behind (spec/kv.md 4.3)."""

    path: str | None = None
    """Folder of the tokenizer, or a hub name whose files are in the local cache; neither this nor `package`: modelName is the folder."""
    package: str | None = None
    """Installed Python package that ships the vocabulary."""
    chat_template: str | None = None
    """As vLLM's --chat-template."""
    content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    exclude_tools_when_tool_choice_none: bool = False
    enable_auto_tool_choice: bool | None = None
    """Whether the servers run with --enable-auto-tool-choice and a --tool-call-parser; without, they refuse chats that may call tools."""
    trust_request_chat_template: bool = False
    max_model_len: Annotated[int | None, Between(1, 1 << 40)] = None
    add_generation_prompt: bool = True
    """For requests that do not say."""
    lora_modules: tuple[str, ...] = ()
    """Adapter names the servers know; requests for them are tokenized as the base model."""

    def __post_init__(self) -> None:
        if self.path and self.package:
            raise ValueError("path, package: only one of them can be given")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateBackend:
    """Sizes instead of tokens: good enough for load, never for precise keys. How media count matters to approximate matching only."""

    image: Annotated[object, NOT_YET] = None
    video: Annotated[object, NOT_YET] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProducerParams:
    """Parameters of token-producer. After loading exactly one backend is set."""

    model_name: str = ""
    """Model the tokens are for: the base model's name at the render server, or its folder."""
    vllm: VllmBackend | None = None
    local: LocalBackend | None = None
    estimate: EstimateBackend | None = None
    uds_tokenizer_config: Annotated[object, NOT_YET] = None

    def __post_init__(self) -> None:
        given = [key for key in ("local", "vllm", "estimate") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: only one of them can be given")
        if self.vllm is not None and not self.model_name:
            raise ValueError("modelName: is needed with vllm: the name the render server knows the model by")

    @property
    def exact(self) -> bool:
        """Whether its tokens are the engine's."""
        return self.vllm is not None or self.local is not None


class TokenProducer(Declared):
    """Stands for the tokens of `cycle.tokens`."""

    PROVIDES: ClassVar[tuple[DataKey[Any], ...]] = (TOKENIZED_PROMPT,)


PLUGIN = PluginType(TYPE, TokenProducerParams, TokenProducer, frozenset((Role.TOKEN_PRODUCER,)))
