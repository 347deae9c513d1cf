"""A tokenizer simple enough to count in the head: one token a character, its code point."""

from dataclasses import dataclass

from epp.domain import TokenIds
from epp.tokenization.encoder import Encoder
from epp.tokenization.pieces import Pieces

BEGIN, END = 1, 2


@dataclass
class Encoding:
    ids: list[int]


class Characters:
    def encode(self, input: str, *, add_special_tokens: bool) -> Encoding:  # noqa: A002 - the interface's name
        assert not add_special_tokens
        return Encoding([ord(character) for character in input])


ENCODER = Encoder(Characters(), prefix=(BEGIN,), suffix=(END,), max_chars_per_token=4, max_token_id=999, pieces=Pieces(()))


def text_of(ids: TokenIds) -> str:
    """What the ids say, special tokens as ^ and $."""
    return "".join({BEGIN: "^", END: "$"}.get(i, chr(i)) for i in ids)
