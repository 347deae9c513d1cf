"""Sample requests show different situations, each with a reason that fits its numbers."""

from epp.demo.samples import choose, why
from tests.unit.demo.builders import choice, mode_run, played


def test_the_longest_prefix_is_the_reason_where_it_won() -> None:
    """The sentence has the chosen pod's blocks and those of the next best."""
    assert why(choice("a", "pod-1", [3, 9])) == "pod-1 holds 9 of the prompt's 10 blocks, the next best 3."


def test_where_nobody_holds_anything_load_decides() -> None:
    """The sentence names what the chosen pod had more of, in plain words."""
    sentence = why(choice("a", "pod-1", [0, 0], active=[0.25, 1.0]))
    assert sentence == "No pod holds any of the prompt's 10 blocks, so load decides: pod-1 has fewer requests under way (+0.75)."


def test_a_busy_holder_is_named_with_what_outweighed_it() -> None:
    """Leaving the longest prefix needs a reason."""
    sentence = why(choice("a", "pod-1", [8, 6], active=[0.0, 1.0]))
    assert sentence.startswith("pod-0 holds 8 of the prompt's 10 blocks and pod-1 only 6, but pod-1 has fewer requests under way (+1.00)")


def test_a_tie_of_everything_is_luck() -> None:
    """No reason is invented."""
    assert "the luck of the draw" in why(choice("a", "pod-0", [0, 0]))


def test_each_situation_is_shown_once() -> None:
    """Two conversations that go on give one sample, and so does a cold prompt."""
    choices = [choice("a", "pod-0", [9, 0]), choice("b", "pod-1", [0, 8]), choice("c", "pod-1", [0, 0])]
    samples = choose(mode_run([played("a"), played("b"), played("c")], [0, 0, 0], choices))
    assert [(sample.title, sample.request.request_id) for sample in samples] == [
        ("A conversation goes on", "b"),
        ("A prompt nobody has seen", "c"),
    ]
