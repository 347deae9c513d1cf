"""What the model says: words of the real vocabulary, the same for the same prompt and seed on every pod.

Pure. Words are chosen so that their text, sent back as a message of the next turn, becomes the same token ids again:
each begins with a space (or, the first one, with a capital letter) and is one token, so no merge crosses a border.
That is what lets a growing conversation hit the blocks its own answers filled.
"""

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

# Where the model would stop by itself, in words: enough to fill blocks, short enough to watch.
NATURAL_WORDS = (24, 160)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The part of a tokenizer's vocabulary that answers are made of: id -> text."""

    openers: Mapping[int, str]
    """Capitalised words without a space, for the beginning."""
    words: Mapping[int, str]
    """Lower-case words with a leading space."""
    end: int | None
    """The token by which the model stops; it has no text."""


@dataclass(slots=True)
class Answer:
    """One planned answer."""

    tokens: list[int]
    finish_reason: str
    """OpenAI's word: "stop" where the model ends by itself, "length" at max_tokens."""


class AnswerWriter:
    """Plans answers and turns their tokens into text."""

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self._seed = seed
        self._end = vocabulary.end
        self._openers = tuple(vocabulary.openers)
        self._words = tuple(vocabulary.words)
        self._texts = {**vocabulary.openers, **vocabulary.words}

    def write(self, prompt: Sequence[int], *, max_tokens: int, ignore_eos: bool, seed: int | None = None) -> Answer:
        """The answer to a prompt, at most `max_tokens` long (exactly so with `ignore_eos`); `seed` is the request's own."""
        rng = random.Random(self._digest(prompt, self._seed if seed is None else seed))
        natural = rng.randint(*NATURAL_WORDS)
        stops = self._end is not None and not ignore_eos and natural < max_tokens
        count = natural if stops else max_tokens
        tokens = [rng.choice(self._openers), *rng.choices(self._words, k=count - 1)]
        if stops and self._end is not None:
            tokens.append(self._end)
        return Answer(tokens, "stop" if stops else "length")

    def text(self, token: int) -> str:
        """Text of one token of an answer; the end token has none."""
        return self._texts.get(token, "")

    @staticmethod
    def _digest(prompt: Sequence[int], seed: int) -> int:
        content = array("Q", prompt).tobytes() + str(seed).encode()
        return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
