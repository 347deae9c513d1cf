"""The bound of one infinite cache equals what a search through all earlier requests finds."""

from hypothesis import given
from hypothesis import strategies as st

from epp.demo.bound import Spoken, hit_tokens


def longest_shared_prefix(requests: list[Spoken], block_size: int) -> list[int]:
    """The definition, word by word: compare with every request before."""
    bounds = []
    for i, (prompt, _) in enumerate(requests):
        best = 0
        for earlier_prompt, earlier_answer in requests[:i]:
            held = [*earlier_prompt, *earlier_answer]
            held = held[: len(held) // block_size * block_size]
            shared = 0
            while shared < min(len(held), len(prompt)) and held[shared] == prompt[shared]:
                shared += 1
            best = max(best, min(shared, len(prompt) - 1) // block_size * block_size)
        bounds.append(best)
    return bounds


tokens = st.lists(st.integers(0, 1), max_size=14)


@given(st.lists(st.builds(Spoken, tokens.filter(len), tokens), max_size=8), st.integers(1, 4))
def test_equals_the_definition(requests: list[Spoken], block_size: int) -> None:
    """Blocks named in one pass give the same as comparing all pairs."""
    assert hit_tokens(requests, block_size) == longest_shared_prefix(requests, block_size)


def test_worked_example() -> None:
    """A prompt sent again hits all but its last block; the next turn hits what the answer filled, too."""
    prompt, answer = list(range(8)), [50, 51, 52, 53]
    again = Spoken(prompt, answer)
    next_turn = Spoken([*prompt, *answer, 54, 60, 61], [])
    assert hit_tokens([Spoken(prompt, answer), again, next_turn], block_size=4) == [0, 4, 12]
