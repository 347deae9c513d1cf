"""Ids of the pieces of a prompt, kept: the turns of a conversation that were there in the last request are not encoded again.

A text is cut in front of occurrences of *isolated* tokens, and the pieces are encoded one by one. That the ids of the whole are the
ids of the pieces, one after the other, follows from how a tokenizer works (huggingface/tokenizers, `AddedVocabulary` and
`TokenizerImpl.do_tokenize`):

1. The text is first split at added tokens that are not `normalized`, found from left to right, the longest at the leftmost place. All
   that comes after (normalizer, pre-tokenizer, model) sees the parts between them one by one. It may ask whether a part is the first
   (Metaspace), nothing else about its neighbours. Where there is no normalizer, each part is then split at the other added tokens alike.
2. Let t be such a token, without `lstrip`, `rstrip` and `single_word`, and let no added token u, t included, be able to reach over an
   occurrence of t: no end of u is a beginning of t, and t is not part of u. Then the search stops in front of every occurrence of t and
   finds exactly t there. What lies left of it is split as if the text ended there; a token that takes white space along or looks at the
   next character (`rstrip`, `single_word`) notices no difference, because t begins with neither white space nor a letter. A t of the
   second split must also not be touched by any token of the first, which would have taken its share before: none of those is part of
   t, and no end of t is a beginning of one.
3. So splitting at t commutes with splitting the text: parts(A + t + B) = parts(A) + [t] + parts(B), where no part of B is the
   first. A piece that begins with t has the same parts in the same places, and again B's are not the first.

`isolated` decides 2, among all added tokens where there is no normalizer, else among those of the first split. The proof at load checks the outcome against transformers on its corpus (prove.py); tests check it with
Hypothesis on both vocabularies. Thread-safe without locks: every step is one atomic operation on a dict, a race costs an encoding.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

MAX_BYTES: Final = 16 << 20
"""What one tokenizer's pieces may hold, in two generations."""

GATHERED: Final = 512
"""Pieces are gathered to this many characters, from the left: shorter ones cost more to look up than to encode."""


class AddedToken(msgspec.Struct, frozen=True):
    """An entry of `added_tokens` in tokenizer.json."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


class TokenizerFile(msgspec.Struct, frozen=True):
    """What `isolated` needs of a tokenizer.json."""

    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: dict[str, object] | None = None


def isolated(tokenizer: TokenizerFile) -> list[str]:
    """The added tokens that a text may be cut in front of; rule 2 of the module."""
    plain = tokenizer.normalizer in (None, {"type": "Sequence", "normalizers": []})
    searched = [token.content for token in tokenizer.added_tokens if plain or not token.normalized]
    endings = {content[i:] for content in searched for i in range(1, len(content))}
    everything = "\0".join(searched)
    first = [token.content for token in tokenizer.added_tokens if not token.normalized]
    return [
        content
        for token in tokenizer.added_tokens
        if not (token.single_word or token.lstrip or token.rstrip or (token.normalized and not plain))
        and (content := token.content)
        and not (content[0].isspace() or content[0].isalnum() or content[0] == "_" or content[-1].isspace())
        and everything.count(content) == 1
        and not any(content[:length] in endings for length in range(1, len(content) + 1))
        and not (token.normalized and any(_touches(other, content) for other in first))
    ]


def _touches(other: str, content: str) -> bool:
    """Whether an occurrence of `other` can begin within one of `content`."""
    return other in content or any(content.endswith(other[:length]) for length in range(1, len(other)))


class Pieces:
    """Cuts texts, and remembers the ids of their pieces."""

    def __init__(self, tokens: Iterable[str], *, max_bytes: int = MAX_BYTES, gathered: int = GATHERED) -> None:
        """`tokens` are isolated; without any, nothing is cut."""
        longest_first = sorted(tokens, key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._gathered = gathered
        self._half = max_bytes // 2
        self._young: dict[str, array[int]] = {}
        self._old: dict[str, array[int]] = {}
        self._young_bytes = 0

    def encode(self, text: str, encode: Callable[[str], Sequence[int]]) -> "array[int]":
        """Ids of the text; `encode` gives those of a piece that is not known."""
        ids = array("I")
        for piece in self._cut(text):
            ids += self._ids(piece, encode)
        return ids

    def last_cut(self, text: str) -> int:
        """Where the last isolated token of the text begins; 0 if there is none. All before it is encoded the same whatever follows."""
        at = 0
        for found in self._cuts.finditer(text):
            at = found.start()
        return at

    def _cut(self, text: str) -> Iterator[str]:
        begin = 0
        for found in self._cuts.finditer(text):
            if found.start() - begin >= self._gathered:
                yield text[begin : found.start()]
                begin = found.start()
        yield text[begin:]

    def _ids(self, piece: str, encode: Callable[[str], Sequence[int]]) -> "array[int]":
        ids = self._young.get(piece)
        if ids is None:
            ids = self._old.get(piece)
            if ids is None:
                ids = array("I", encode(piece))
            self._keep(piece, ids)
        return ids

    def _keep(self, piece: str, ids: "array[int]") -> None:
        size = 2 * len(piece) + 4 * len(ids) + 200
        if size > self._half // 8:
            return
        if self._young_bytes + size > self._half:
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[piece] = ids
        self._young_bytes += size
