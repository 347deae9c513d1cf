"""Prompts of completions requests: their four forms, special tokens and cuts (spec/kv.md 4.1, 4.2; probed against vLLM 0.32)."""

from typing import Any

import pytest

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.completions import completion_prompts
from tests.unit.tokenization.encoders import ENCODER, text_of

MAX_MODEL_LEN = 20


def prompts(max_model_len: int | None = MAX_MODEL_LEN, **body: object) -> list[str]:
    return [text_of(ids) for ids in completion_prompts(body, ENCODER, max_model_len)]


ABC = [97, 98, 99]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("abc", ["^abc$"]),
        (["abc", "d"], ["^abc$", "^d$"]),
        (ABC, ["abc"]),
        ([ABC, [100]], ["abc", "d"]),
        (["1", "2"], ["^1$", "^2$"]),
        (["97", 98.0, 99], ["abc"]),
        ([[97], ["98"]], ["a", "b"]),
    ],
)
def test_each_form_of_a_prompt_is_told_apart(prompt: object, expected: list[str]) -> None:
    """Texts get special tokens, ids are used as they are, and what pydantic takes for an integer is one."""
    assert prompts(prompt=prompt) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"add_special_tokens": False}, "abcdef"),
        ({"add_special_tokens": "no"}, "abcdef"),
        ({"truncate_prompt_tokens": 4}, "^ef$"),
        ({"truncate_prompt_tokens": 2}, "^$"),
        ({"truncate_prompt_tokens": 1}, "$"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, "def$"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, "^abc"),
        ({"truncate_prompt_tokens": "4", "add_special_tokens": False}, "cdef"),
        ({"truncate_prompt_tokens": None, "truncation_side": "right"}, "^abcdef$"),
        ({"truncate_prompt_tokens": 20}, "^abcdef$"),
        ({"truncate_prompt_tokens": -1}, "^abcdef$"),
    ],
)
def test_cuts_keep_the_tokens_the_engine_keeps(fields: dict[str, Any], expected: str) -> None:
    """The left side goes unless the request says otherwise; the tokenizer leaves room for its special tokens, an explicit side does not."""
    assert prompts(prompt="abcdef", **fields) == [expected]


def test_token_ids_are_cut_too() -> None:
    """The engine keeps the last ones, and looks only at those in its vocabulary."""
    assert prompts(prompt=[5000, 97], truncate_prompt_tokens=1) == ["a"]
    assert prompts(prompt=[[97, 98, 99, 100], [101]], truncate_prompt_tokens=2) == ["cd", "e"]


def test_cutting_to_the_context_holds_one_token_back_for_the_answer() -> None:
    """Minus one means the context length, less one token when the request generates any."""
    text = "x" * 50
    assert len(prompts(prompt=text, truncate_prompt_tokens=-1)[0]) == MAX_MODEL_LEN - 1
    assert len(prompts(prompt=text, truncate_prompt_tokens=-1, max_tokens=0, echo=True)[0]) == MAX_MODEL_LEN


def test_very_long_texts_are_cut_by_characters_first_when_a_side_is_named() -> None:
    """The engine bounds the tokenizer's work at four characters a token here, before any token exists."""
    text = "".join(chr(97 + i % 26) for i in range(200))
    for side, cut in (("left", text[-80:]), ("right", text[:80])):
        fields: dict[str, Any] = {"truncate_prompt_tokens": 20, "truncation_side": side, "add_special_tokens": False}
        assert prompts(prompt=text, **fields) == [cut[-20:] if side == "left" else cut[:20]]


REFUSED: list[dict[str, object]] = [
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [""], "add_special_tokens": False},
    {"prompt": [1.5]},
    {"prompt": [-1]},
    {"prompt": [-1, 97], "truncate_prompt_tokens": 1},
    {"prompt": [1000]},
    {"prompt": [[97], "a"]},
    {"prompt": ["a", 5, None]},
    {"prompt": "abc", "suffix": "d"},
    {"prompt": "abc", "truncate_prompt_tokens": -2},
    {"prompt": "abc", "truncate_prompt_tokens": 21},
    {"prompt": "abc", "truncate_prompt_tokens": "many"},
    {"prompt": "abc", "truncation_side": "top"},
    {"prompt": "abc", "max_tokens": 21},
    {"prompt": "abc", "add_special_tokens": None},
    {"prompt": "x" * 19},
    {"prompt": "x" * 81},
]


@pytest.mark.parametrize("body", REFUSED, ids=str)
def test_what_the_engine_refuses_has_no_tokens(body: dict[str, object]) -> None:
    """It will never compute a block of such a prompt."""
    with pytest.raises(NoTokensError) as absence:
        completion_prompts(body, ENCODER, MAX_MODEL_LEN)
    assert absence.value.reason is Reason.ENGINE_REFUSES


def test_without_a_context_length_only_cuts_to_it_are_unknown() -> None:
    """Everything else is as exact as before."""
    assert prompts(None, prompt="x" * 100, truncate_prompt_tokens=3) == ["^x$"]
    with pytest.raises(NoTokensError) as absence:
        prompts(None, prompt="abc", truncate_prompt_tokens=-1)
    assert absence.value.reason is Reason.MAX_MODEL_LEN_UNKNOWN


def test_prompts_given_as_embeddings_have_no_tokens() -> None:
    """Their blocks are hashed from tensors."""
    with pytest.raises(NoTokensError) as absence:
        prompts(prompt="abc", prompt_embeds="AAAA")
    assert absence.value.reason is Reason.PROMPT_EMBEDS
