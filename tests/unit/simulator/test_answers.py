"""Answers are the same wherever a prompt goes, and end where they should."""

import pytest

from epp.simulator.answers import AnswerWriter, Vocabulary

VOCABULARY = Vocabulary(openers={1: "The", 2: "A"}, words={10: " cat", 11: " dog", 12: " bird"}, end=99)


def test_same_prompt_and_seed_same_answer() -> None:
    """Runs that route differently stay comparable: the answer depends on prompt and seed only."""
    one, other = AnswerWriter(VOCABULARY, seed=7), AnswerWriter(VOCABULARY, seed=7)
    assert one.write([1, 2], max_tokens=20, ignore_eos=False) == other.write([1, 2], max_tokens=20, ignore_eos=False)
    assert one.write([1, 2], max_tokens=20, ignore_eos=False) != one.write([1, 3], max_tokens=20, ignore_eos=False)
    assert one.write([1, 2], max_tokens=20, ignore_eos=False) != one.write([1, 2], max_tokens=20, ignore_eos=False, seed=8)


@pytest.mark.parametrize(
    ("max_tokens", "ignore_eos", "reason"), [(1, False, "length"), (5, False, "length"), (1000, True, "length"), (1000, False, "stop")]
)
def test_ends(*, max_tokens: int, ignore_eos: bool, reason: str) -> None:
    """max_tokens is never exceeded, and reached exactly unless the model stops by itself, with its end token."""
    answer = AnswerWriter(VOCABULARY, seed=0).write([5], max_tokens=max_tokens, ignore_eos=ignore_eos)
    assert answer.finish_reason == reason
    assert (answer.tokens[-1] == 99) == (reason == "stop")
    assert len(answer.tokens) == max_tokens or reason == "stop"


def test_a_shorter_limit_cuts_the_same_answer() -> None:
    """max_tokens does not change what is said, only how far."""
    writer = AnswerWriter(VOCABULARY, seed=0)
    long, short = (writer.write([5], max_tokens=count, ignore_eos=True).tokens for count in (50, 10))
    assert long[:10] == short
