"""Templates that would never end, or fill the memory: they cost the request its tokens, and nothing else."""

import pytest

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.template import ChatTemplate, TooManyStepsError, takes_later_systems

NESTED = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        NESTED,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for m in messages recursive %}{{ loop([m, m]) }}{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_rendering_ends(template: str) -> None:
    """Loops, calls, recursion and numbers without end."""
    with pytest.raises(NoTokensError) as absence:
        ChatTemplate(template).render([{"role": "user", "content": "x"}], variables={})
    assert absence.value.reason is Reason.TEMPLATE_ERROR


def test_the_budget_is_that_of_each_rendering() -> None:
    """What one has spent, the next has again."""
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    for _ in range(3):
        assert template.render([{"content": "a"}] * 50, variables={}, steps=50) == "a" * 50
    with pytest.raises(TooManyStepsError):
        template.render([{"content": "a"}] * 51, variables={}, steps=50)


def test_counting_changes_nothing_that_a_template_sees() -> None:
    """Length, neighbours, last, else, unpacking, constants, filters, breaks: all as without."""
    template = ChatTemplate(
        "{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.previtem }}{{ loop.revindex }}{% if loop.index == 2 %}{% break %}"
        "{% endif %}{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for x in nothing %}{% else %}none{% endfor %}"
        "{% for x in [3, 4] if x > 3 %}{{ x }}{% endfor %}{% for c in 'ab' %}{{ c * 2 }}{% endfor %}"
    )
    assert template.render([{"n": 1}, {"n": 2}, {"n": 3}], variables={}) == "3False33False{'n': 1}2a1none4aabb"
    assert template.content_format == "string"


def test_a_template_that_does_not_end_takes_no_later_systems() -> None:
    """It is tried at load."""
    assert not takes_later_systems(
        "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in messages %}{{ c.x() }}{% endfor %}{% endfor %}{% endfor %}"
    )
