"""Cutting at isolated tokens changes no id: on the two vocabularies, and on made-up ones that try to break the proof of pieces.py."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken as Added
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from epp.tokenization.encoder import FastTokenizer, load_fastokens, load_tokenizers
from epp.tokenization.pieces import AddedToken, Pieces, TokenizerFile, isolated


def tokens_of(tokenizer_json: str) -> list[str]:
    return isolated(msgspec.json.decode(tokenizer_json, type=TokenizerFile))


def check(tokenizer: FastTokenizer, pieces: Pieces, text: str) -> None:
    def encode(piece: str) -> list[int]:
        return tokenizer.encode(piece, add_special_tokens=False).ids

    assert pieces.encode(text, encode).tolist() == encode(text)


@pytest.fixture(scope="module", params=["recorded_folder", "qwen_folder"])
def vocabulary(request: pytest.FixtureRequest) -> tuple[list[FastTokenizer], list[str]]:
    """The tokenizers of both libraries, and where texts may be cut."""
    folder: Path = request.getfixturevalue(request.param)
    file = folder / "tokenizer.json"
    return [load_fastokens(file), load_tokenizers(file)], tokens_of(file.read_text())


SPECIAL = [
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</tool_call>",
]


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from([*SPECIAL, "<", "<|", "|>", "<｜", " ", "\n", "\n\n", "user\n", "é", "e\u0301", "日本", "😀", "12", "'s"])
        | st.text(max_size=12),
        max_size=20,
    )
)
def test_cut_texts_have_the_ids_of_whole_ones(vocabulary: tuple[list[FastTokenizer], list[str]], parts: list[str]) -> None:
    """In both libraries, wherever special tokens stand, with everything remembered from the examples before."""
    tokenizers, tokens = vocabulary
    assert {"<|im_start|>", "<|im_end|>"} <= set(tokens) or {"<｜User｜>", "<｜Assistant｜>"} <= set(tokens)
    for tokenizer in tokenizers:
        check(tokenizer, Pieces(tokens, gathered=0), "".join(parts))


@pytest.mark.parametrize(
    ("first", "second", "text"), [(">", "<>", "<<>"), (">a", "<>", "<<>a"), (">a", "<>", "<<>")], ids=["part", "end", "would touch"]
)
def test_a_token_that_another_split_reaches_into_cuts_nothing(first: str, second: str, text: str) -> None:
    """Tokens that are not normalized are taken out of the text before the others are looked for."""
    letters = "<>a"
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"<<": 10}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("<", "<")]))
    tokenizer.add_tokens([Added(first, normalized=False), Added(second, normalized=True)])
    assert second not in tokens_of(tokenizer.to_str())
    check(tokenizer, Pieces(tokens_of(tokenizer.to_str()), gathered=0), text)


LETTERS = "<>|ab_ "
flags = st.fixed_dictionaries({name: st.booleans() for name in ("single_word", "lstrip", "rstrip", "normalized", "special")})
added = st.dictionaries(st.text(LETTERS, min_size=1, max_size=4).filter(str.strip), flags, min_size=1, max_size=6)
PRE_TOKENIZERS: list[Any] = [
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.Metaspace(prepend_scheme="first"),
    pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
    pre_tokenizers.Split(" ", "merged_with_previous"),
]
NORMALIZERS: list[Any] = [None, normalizers.Prepend("_"), normalizers.Replace("a", "b"), normalizers.Strip()]


@settings(max_examples=1500, deadline=None)
@given(
    added=added,
    normalizer=st.sampled_from(NORMALIZERS),
    pre_tokenizer=st.sampled_from(PRE_TOKENIZERS),
    texts=st.lists(st.text(LETTERS, max_size=12), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_proof_holds_for_made_up_vocabularies(
    added: Any, normalizer: Any, pre_tokenizer: Any, texts: list[str], data: st.DataObject
) -> None:
    """Tokens that overlap, strip, want whole words, or are normalized; first-part rules of pre-tokenizers; every merge there is."""
    letters = sorted({*LETTERS, "▁", "Ġ"})
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = [(a, b) for a in letters for b in letters]
    vocabulary |= {a + b: len(letters) + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens([Added(content, **kind) for content, kind in added.items()])
    pieces = Pieces(tokens_of(tokenizer.to_str()), gathered=0)
    between = data.draw(st.lists(st.sampled_from(sorted(added)), min_size=len(texts), max_size=len(texts)))
    check(tokenizer, pieces, "".join(text + token for text, token in zip(texts, between, strict=True)))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([AddedToken("<s>", normalized=False), AddedToken("<e>", normalized=False)], ["<s>", "<e>"]),
        ([AddedToken("<s>", normalized=True)], []),
        ([AddedToken("<s>", normalized=False, lstrip=True), AddedToken("<e>", normalized=False, rstrip=True)], []),
        ([AddedToken("<s>", normalized=False, single_word=True)], []),
        ([AddedToken("word", normalized=False), AddedToken(" <s>", normalized=False)], []),
        ([AddedToken("<s>", normalized=False), AddedToken("<s><s>", normalized=False)], []),
        ([AddedToken("<s>", normalized=False), AddedToken("/<s", normalized=False)], ["/<s"]),
        ([AddedToken("<<", normalized=False)], []),
        ([AddedToken("<s>", normalized=False), AddedToken("<s>x", normalized=True)], ["<s>"]),
    ],
)
def test_which_tokens_are_isolated(tokens: list[AddedToken], expected: list[str]) -> None:
    """Those nothing else can reach over."""
    assert isolated(TokenizerFile(tuple(tokens), {"type": "NFC"})) == expected


def test_without_a_normalizer_all_tokens_are_searched_alike() -> None:
    """So they count, as places to cut and as what may reach over."""
    tokens = (AddedToken("<s>", normalized=True), AddedToken("<e>", normalized=False), AddedToken("x<e", normalized=True))
    assert isolated(TokenizerFile(tokens, None)) == ["<s>"]
    assert isolated(TokenizerFile(tokens, {"type": "NFC"})) == ["<e>"]


def test_what_is_remembered_is_bounded() -> None:
    """Old pieces go; the last ones are not encoded again."""
    encoded: list[str] = []

    def encode(piece: str) -> list[int]:
        encoded.append(piece)
        return [1] * len(piece)

    pieces = Pieces(["<t>"], max_bytes=100_000)
    for i in range(300):
        pieces.encode(f"<t>{i:0600}", encode)
    assert len(encoded) == 300
    pieces.encode(f"<t>{299:0600}", encode)
    assert len(encoded) == 300
    pieces.encode(f"<t>{0:0600}", encode)
    assert len(encoded) == 301
    assert sum(map(len, encoded)) == 301 * 603
