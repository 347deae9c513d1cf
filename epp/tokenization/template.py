"""Chat templates: compiled once, rendered exactly as Hugging Face transformers renders them (spec/kv.md 4.3.7).

The environment is the one templates are written for: sandboxed and immutable, trimmed blocks, loop controls, the
`generation` tag, an unescaped `tojson`, `raise_exception` and `strftime_now` (the local time zone, so prompts change with
the date, as they do in the engine). transformers itself is not imported: the proof at load compares the two (prove.py).
Templates are programs of strangers: they run in the sandbox, any exception means "no tokens", and each step of a loop and each call
counts against a budget, so that rendering ends. Rendering is thread-safe.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NoReturn, Protocol, Required, TypedDict, Unpack

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.content_format import ContentFormat, detect

Message = dict[str, object]

STEPS: Final = 4_000_000
"""Steps one rendering may take, a turn of a loop one, a call twenty: a second or three."""

_CALL: Final = 20
# A list this short costs all its steps when its loop begins, whether or not that is left early.
_PAID_AT_ONCE: Final = 1_000
# Longest text or list that multiplying may make, and bits of a power.
_LARGEST: Final = 1 << 24

# Appended to the message to be continued; everything from its last occurrence on is cut off again.
_CONTINUE_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "


class TooManyStepsError(NoTokensError):
    """The rendering was given up: its steps are used up."""

    def __init__(self) -> None:
        super().__init__(Reason.TEMPLATE_ERROR, "the template takes too many steps")


class _Budget(threading.local):
    """What is left to the rendering of this thread."""

    steps: int = STEPS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TooManyStepsError


_budget = _Budget()


def _counted(members: Iterable[object]) -> Iterable[object]:
    """The members of what a loop runs over, each for one step."""
    if type(members) is list and len(members) <= _PAID_AT_ONCE:
        _budget.spend(len(members))
        return members
    return _one_by_one(members)


def _one_by_one(members: Iterable[object]) -> Iterator[object]:
    spend = _budget.spend
    for member in members:
        spend(1)
        yield member


_OF_EVERY_DICT: Final = frozenset(dir(dict))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts calls, multiplies no more than fits, and finds a field of a message without an exception on the way."""

    intercepted_binops = frozenset(("*", "**"))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As jinja2, for which `message.role` is an attribute first and a key second."""
        if type(obj) is not dict or attribute in _OF_EVERY_DICT:
            return super().getattr(obj, attribute)
        return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)

    def call(_self, context: Context, _obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2, for the names of kwargs
        _budget.spend(_CALL)
        return super().call(context, _obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            too_large = isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _LARGEST
        else:
            too_large = _length(left) * _length(right) > _LARGEST
        if too_large:
            raise TooManyStepsError
        return super().call_binop(context, operator, left, right)


def _length(factor: object) -> int:
    if isinstance(factor, int):
        return factor
    return len(factor) if isinstance(factor, str | list | tuple) else 0


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote; for rendering it is a block with a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - declared by jinja2 as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a call block, so that variables set inside stay inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_emit"), [], [], body).set_lineno(line)

    def _emit(self, caller: Callable[[], str]) -> str:
        return caller()


def _tojson(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the signature templates call
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - the signature templates call
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the signature templates call
    return datetime.now().strftime(format)  # noqa: DTZ005 - the engine's local time, as templates expect


def _environment() -> _Sandbox:
    # Chat templates make prompts, not HTML: escaping would change them.
    return _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])


_PROBING: Final = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
# vLLM looks for a template's variables without the three globals, so a request may shadow these.
_BARE: Final = _environment()
_ENVIRONMENT: Final = _environment()
# No template can spell it.
_COUNTED: Final = "epp counted"
_PROBING.filters[_COUNTED] = _ENVIRONMENT.filters[_COUNTED] = _counted
_ENVIRONMENT.filters["tojson"] = _tojson
_ENVIRONMENT.globals["raise_exception"] = _raise_exception
_ENVIRONMENT.globals["strftime_now"] = _strftime_now


def _compiled(source: str, environment: _Sandbox) -> jinja2.Template:
    """The template with its loops counted."""
    tree = environment.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
    return jinja2.Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


class Rendering(TypedDict, total=False):
    """How messages become a prompt; what is left out is None or False, and as many steps as there are."""

    tools: Sequence[object] | None
    documents: Sequence[object] | None
    add_generation_prompt: bool
    continue_final_message: bool
    variables: Required[Mapping[str, object]]
    steps: int


class Template(Protocol):
    """A template that can be rendered: here (ChatTemplate), or somewhere else (StrangersTemplate)."""

    source: str
    variables: frozenset[str]
    """Names it does not define itself."""
    content_format: ContentFormat
    knows_developer: bool

    def render(self, messages: Sequence[Message], **how: Unpack[Rendering]) -> str:
        """The prompt text. Raises NoTokensError."""


class ChatTemplate:
    """One compiled template. Immutable."""

    def __init__(self, source: str) -> None:
        """Raises NoTokensError for a template that does not compile."""
        self.source = source
        try:
            tree = _BARE.parse(source)
            self._template = _compiled(source, _ENVIRONMENT)
        except Exception as error:  # noqa: BLE001 - jinja2's lexer and compiler raise more than TemplateSyntaxError
            raise NoTokensError(Reason.TEMPLATE_ERROR, f"the template does not compile: {error}") from None
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self.content_format: ContentFormat = detect(tree)
        self.knows_developer = "'developer'" in source or '"developer"' in source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[object] | None = None,
        documents: Sequence[object] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, object],
        steps: int = STEPS,
    ) -> str:
        """The prompt text. Raises NoTokensError with whatever the template complains about, TooManyStepsError if it does not end."""
        tail = ""
        if continue_final_message:
            messages, tail = self._open_final_message(messages)
        _budget.steps = steps
        try:
            text = self._template.render(
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except TooManyStepsError:
            raise
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            raise NoTokensError(Reason.TEMPLATE_ERROR, str(error) or type(error).__name__) from None
        return _cut(text, tail) if continue_final_message else text

    def _open_final_message(self, messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
        """The messages with a tag at the end of the last one's text, and that text."""
        final = dict(messages[-1])
        content = final.get("content")
        if content is None or "content" not in self.source:
            raise NoTokensError(Reason.TEMPLATE_ERROR, "there is no final message content to continue")
        if isinstance(content, list):
            parts = list(content)
            index = next((i for i in reversed(range(len(parts))) if "text" in parts[i]), None)
            if index is None:
                raise NoTokensError(Reason.TEMPLATE_ERROR, "there is no text to continue in the final message")
            text = parts[index]["text"]
            parts[index] = {**parts[index], "text": f"{text}{_CONTINUE_TAG}"}
            final["content"] = parts
        else:
            text = content
            final["content"] = f"{text}{_CONTINUE_TAG}"
        if not isinstance(text, str):
            raise NoTokensError(Reason.TEMPLATE_ERROR, "the text to continue in the final message is no string")
        return [*messages[:-1], final], text


def _cut(rendered: str, text: str) -> str:
    """Everything before the tag; right-stripped where the template trimmed the message, and with it the tag's trailing space."""
    at = rendered.rfind(_CONTINUE_TAG.strip())
    if at < 0 or text.strip() not in rendered:
        raise NoTokensError(Reason.TEMPLATE_ERROR, "the template drops the message that is to be continued")
    return rendered[:at] if rendered.startswith(_CONTINUE_TAG, at) else rendered[:at].rstrip()


def takes_later_systems(source: str) -> bool:
    """Whether a system message may come after a user's, as vLLM finds out for /v1/messages: it tries, without the globals (spec/kv.md 4.6)."""
    _budget.steps = STEPS
    turn = [{"role": "system", "content": "t"}, {"role": "user", "content": "t"}]
    try:
        _compiled(source, _PROBING).render(messages=turn * 2, add_generation_prompt=False)
    except Exception:  # noqa: BLE001 - whatever a template raises
        return False
    return True


@lru_cache(maxsize=32)
def compiled(source: str) -> ChatTemplate:
    """The template of a text."""
    return ChatTemplate(source)
