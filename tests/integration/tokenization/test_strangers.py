"""Templates of clients run in a process of their own: they render as ours do, and what they take too much of is not the picker's."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.stranger import MEMORY
from epp.tokenization.strangers import LONGEST_SOURCE, Strangers
from epp.tokenization.template import ChatTemplate

TEMPLATES = Path(__file__).parents[2] / "vllm" / "templates"
MESSAGES: list[dict[str, object]] = [{"role": "system", "content": "é"}, {"role": "user", "content": "日本 😀"}]
GREETING = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def strangers() -> Iterator[Strangers]:
    strangers = Strangers()
    yield strangers
    strangers.close()


@pytest.mark.parametrize(
    "source", [GREETING, *(file.read_text() for file in sorted(TEMPLATES.glob("*.jinja")))], ids=["greeting", "clerk", "thinker"]
)
def test_a_client_s_template_renders_as_one_of_ours(strangers: Strangers, source: str) -> None:
    """Text, variables, content format: all that the renderer asks of it."""
    ours, theirs = ChatTemplate(source), strangers.template(source)
    assert (theirs.variables, theirs.content_format, theirs.knows_developer) == (ours.variables, ours.content_format, ours.knows_developer)
    for continued in (False, True):
        arguments = {"variables": {"eos_token": "</s>"}, "add_generation_prompt": not continued, "continue_final_message": continued}
        content: object = [{"type": "text", "text": "hi"}] if ours.content_format == "openai" else "hi"
        messages = [{**message, "content": content} for message in MESSAGES]
        assert theirs.render(messages, **arguments) == ours.render(messages, **arguments)  # type: ignore[arg-type]


DOUBLING = "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}"


@pytest.mark.parametrize(
    "source",
    [
        DOUBLING,
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{{ 'a' | center(100000000000) }}",
        "{% set n = 100000000000 %}{{ 'a'.ljust(n) }}",
        "{{ '%100000000000s' % 'a' }}",
        "{{ ('a' * 9000000).replace('a', 'a' * 9000000) }}",
        "{{ 'a'.encode() * 100000000000 }}",
        "{{ messages | tojson(indent=10000000000) }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{{ ('a' * 9000000) ~ ('a' * 9000000) }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ ''.__class__.__mro__ }}{{ messages.x.y }}",
        "{{ '\\ud800' }}",
    ],
)
def test_what_a_client_s_template_cannot_have_costs_its_tokens_alone(strangers: Strangers, source: str) -> None:
    """Memory without end, at compile time or later, steps without end, errors: a reason, and the next one is rendered."""
    with pytest.raises(NoTokensError) as absence:
        strangers.template(source).render(MESSAGES, variables={})
    assert absence.value.reason is Reason.TEMPLATE_ERROR
    assert strangers.template(GREETING).render(MESSAGES, variables={}) == "system: éuser: 日本 😀"


def test_the_picker_s_own_memory_stays_what_it_was(strangers: Strangers) -> None:
    """What the template took is the other process's, and not much."""
    before = _peak()
    with pytest.raises(NoTokensError, match="memory"):
        strangers.template(DOUBLING).render(MESSAGES, variables={})
    assert _peak() - before < MEMORY / 8


def test_a_template_that_takes_too_long_is_ended() -> None:
    """One call of a filter counts as one step, however long it takes."""
    strangers = Strangers(timeout_s=0.0)
    try:
        with pytest.raises(NoTokensError, match="took too long"):
            strangers.template(GREETING)
    finally:
        strangers.close()


def test_a_process_that_is_gone_is_replaced(strangers: Strangers) -> None:
    """Whoever ended it: an operator, or the kernel for want of memory."""
    template = strangers.template(GREETING)
    for _ in range(2):
        assert template.render(MESSAGES, variables={}).startswith("system")
        process = strangers._process
        assert process is not None
        process.kill()
        process.wait()


def test_threads_take_turns(strangers: Strangers) -> None:
    """Each gets the answer to its own question."""
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = strangers.template(f"{{{{ {number} }}}}").render(MESSAGES, variables={})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: str(number) for number in range(8)}


def test_a_template_longer_than_any_is_not_kept(strangers: Strangers) -> None:
    """What is remembered of templates must not be the client's choice."""
    with pytest.raises(NoTokensError) as absence:
        strangers.template(" " * (LONGEST_SOURCE + 1))
    assert absence.value.reason is Reason.UNSUPPORTED


def test_nothing_of_the_working_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has this installation's code, also where a checkout or a file called like a module of Python's lies around."""
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "epp").mkdir()
    (tmp_path / "epp/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    strangers = Strangers()
    assert strangers.template("{{ 1 + 1 }}").render([], variables={}, add_generation_prompt=False, continue_final_message=False) == "2"
    strangers.close()


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
