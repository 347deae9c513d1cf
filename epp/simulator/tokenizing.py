"""Prompts to token ids with transformers itself, from a local folder: tokenizer.json, tokenizer_config.json, chat_template.jinja.

A config.json beside them matters: transformers takes the tokenizer's class from its model_type, as it does inside vLLM.

The only module that imports transformers (4 s, 200 MB with a large vocabulary), and only when a tokenizer is loaded.
Not thread-safe: the fleet calls it from its one tokenizer thread, so that long prompts do not delay the pods' steps
(the Rust part releases the GIL).
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from epp.simulator.answers import Vocabulary
from epp.simulator.conversations import Conversation
from epp.simulator.errors import ApiError, SimulatorError

# Answers vary enough with this many words; more would only cost start-up time.
MAX_WORDS = 4096
MAX_OPENERS = 256

_WORD = re.compile(r" [a-z]{4,12}")
_OPENER = re.compile(r"[A-Z][a-z]{2,12}")


class _TransformersTokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerBase that is used here."""

    eos_token_id: int | None
    chat_template: str | Mapping[str, str] | None

    def __len__(self) -> int: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def batch_decode(self, sequences: Sequence[Sequence[int]]) -> list[str]: ...
    def apply_chat_template(self, conversation: Sequence[Mapping[str, object]], **options: object) -> str: ...


class Tokenizer:
    """One model's tokenizer and chat template."""

    def __init__(self, tokenizer: _TransformersTokenizer) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        """Token ids are below this."""

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read a model folder. Raises SimulatorError that names what is wrong with it."""
        if not (folder / "tokenizer.json").is_file():
            raise SimulatorError(f"{folder} has no tokenizer.json; --model-path names a folder with a tokenizer and its chat template")
        # No remarks about frameworks that only models need.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer  # noqa: PLC0415  # see the module's docstring

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises what its backends raise
            raise SimulatorError(f"transformers cannot load the tokenizer in {folder}: {error}") from error
        return cls(cast("_TransformersTokenizer", tokenizer))

    def text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a completion prompt."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def chat(self, conversation: Conversation, template: str | None = None) -> list[int]:
        """Token ids of a chat: template (another than the model's, if given), then tokenizer. Raises ApiError if it refuses the messages."""
        if self._tokenizer.chat_template is None and template is None:
            raise ApiError("This model has no chat template; use /v1/completions.")
        try:
            text = self._tokenizer.apply_chat_template(
                conversation.messages, tools=conversation.tools, chat_template=template, tokenize=False, **conversation.template_kwargs
            )
        except Exception as error:  # a template is a program and may fail in any way
            raise ApiError(f"The chat template refused the request: {error}") from error
        return self._tokenizer.encode(text, add_special_tokens=conversation.add_special_tokens)

    def vocabulary(self) -> Vocabulary:
        """The words that answers are made of: each is one token by itself. Reads the whole vocabulary once."""
        texts = self._tokenizer.batch_decode([[token] for token in range(self.size)])
        words = self._whole(_WORD, texts, MAX_WORDS)
        openers = self._whole(_OPENER, texts, MAX_OPENERS)
        if not words or not openers:
            raise SimulatorError("the tokenizer knows no plain English words to answer with")
        return Vocabulary(openers, words, self._tokenizer.eos_token_id)

    def _whole(self, pattern: re.Pattern[str], texts: Sequence[str], limit: int) -> dict[int, str]:
        """The first ids whose text has this form and becomes the same single id again."""
        found: dict[int, str] = {}
        for token, text in enumerate(texts):
            if pattern.fullmatch(text) and self._tokenizer.encode(text, add_special_tokens=False) == [token]:
                found[token] = text
                if len(found) == limit:
                    break
        return found
