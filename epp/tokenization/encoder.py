"""Text to token ids, without transformers: what the serving process keeps of a tokenizer.

The tokenizer is the *effective* one: the file transformers would write after it has applied its own rules to the
model folder (it replaces pre-tokenizers by model type), which is what the engine runs. Thread-safe: encoding reads only.
Special tokens that encoding adds are always a fixed prefix and suffix; the proof at load checks that (prove.py).
"""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from epp.tokenization.absent import refused
from epp.tokenization.pieces import Pieces


class _Encoding(Protocol):
    @property
    def ids(self) -> list[int]:
        """Token ids."""


class FastTokenizer(Protocol):
    """What fastokens and tokenizers have in common."""

    def encode(self, input: str, *, add_special_tokens: bool) -> _Encoding:  # noqa: A002 - their name
        """Encode one text."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One loaded tokenizer."""

    tokenizer: FastTokenizer
    prefix: tuple[int, ...]
    """Ids put in front of a text that asks for special tokens."""
    suffix: tuple[int, ...]
    max_chars_per_token: int
    max_token_id: int
    """Largest id the engine accepts."""
    pieces: Pieces

    def encode(self, text: str) -> "array[int]":
        """Ids of the text itself. Releases the GIL for most of the work. Raises NoTokensError for half surrogate pairs.

        They get here through the JSON inside tool-call arguments; the engine's tokenizer does not take them either.
        """
        return self.pieces.encode(text, self._encode)

    def _encode(self, text: str) -> Sequence[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise refused("the prompt holds half a surrogate pair") from None


def load_fastokens(tokenizer_json: Path) -> FastTokenizer:
    """A tenth of the CPU of tokenizers. Imported here, because a process that renders remotely needs neither.

    One thread each: those it would start beside the caller's spin for work, and hold 80 MB of words between them.
    """
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    from fastokens import Tokenizer  # noqa: PLC0415 - see above

    tokenizer: FastTokenizer = Tokenizer.from_file(str(tokenizer_json))
    return tokenizer


def load_tokenizers(tokenizer_json: Path) -> FastTokenizer:
    """The library transformers itself uses."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - see above

    return Tokenizer.from_file(str(tokenizer_json))
