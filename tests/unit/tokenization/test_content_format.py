"""Which templates want parts and which want text (spec/kv.md 4.3.5): one example for each rule, and one beside it."""

import pytest

from epp.tokenization.template import ChatTemplate

LOOP = "{% for m in messages %}BODY{% endfor %}"

OPENAI = [
    LOOP.replace("BODY", "{% for p in m.content %}{% endfor %}"),
    LOOP.replace("BODY", "{% for p in m['content'] %}{% endfor %}"),
    LOOP.replace("BODY", "{% for p in m.content | list %}{% endfor %}"),
    LOOP.replace("BODY", "{% for p in m.content[1:] %}{% endfor %}"),
    LOOP.replace("BODY", "{% set content = m.content %}{% for p in content %}{% endfor %}"),
    "{% set rest = messages[1:] %}{% for m in rest %}{% for p in m.content %}{% endfor %}{% endfor %}",
    "{% set a = messages %}{% set b = a | list %}{% for m in b %}{% for p in m.content %}{% endfor %}{% endfor %}",
    "{% macro show(x) %}{% for p in x %}{% endfor %}{% endmacro %}" + LOOP.replace("BODY", "{{ show(m.content) }}"),
    "{% macro show(a, x) %}{% for p in x %}{% endfor %}{% endmacro %}" + LOOP.replace("BODY", "{{ show(1, x=m.content) }}"),
]
STRING = [
    LOOP.replace("BODY", "{{ m.content }}"),
    LOOP.replace("BODY", "{% for c in m.tool_calls %}{% endfor %}"),
    LOOP.replace("BODY", "{% for p in other.content %}{% endfor %}"),
    LOOP.replace("BODY", "{% set text = m.content %}{% for p in text %}{% endfor %}"),
    "{% macro show(x) %}{% for p in x %}{% endfor %}{% endmacro %}" + LOOP.replace("BODY", "{{ show(m.role) }}"),
    "{% macro show(content) %}{% for p in content %}{% endfor %}{% endmacro %}" + LOOP.replace("BODY", "{{ m.content }}"),
    "{% for i, m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}",
    "",
]


@pytest.mark.parametrize("source", OPENAI)
def test_loops_over_content_want_parts(source: str) -> None:
    """Through filters, slices, names and macros."""
    assert ChatTemplate(source).content_format == "openai"


@pytest.mark.parametrize("source", STRING)
def test_everything_else_wants_text(source: str) -> None:
    """Also what is beyond the rules."""
    assert ChatTemplate(source).content_format == "string"
