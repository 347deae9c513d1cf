"""Chat templates: compiled once, rendered exactly as Hugging Face transformers renders them (spec/kv.md 4.3.7).

The environment is the one templates are written for: sandboxed and immutable, trimmed blocks, loop controls, the
`generation` tag, an unescaped `tojson`, `raise_exception` and `strftime_now` (the local time zone, so prompts change with
the date, as they do in the engine). transformers itself is not imported: the proof at load compares the two (prove.py).
Templates are programs of strangers: they run in the sandbox, and any exception means "no tokens". Rendering is thread-safe.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.content_format import ContentFormat, detect

Message = dict[str, object]

# Appended to the message to be continued; everything from its last occurrence on is cut off again.
_CONTINUE_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "


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


def _environment() -> ImmutableSandboxedEnvironment:
    # Chat templates make prompts, not HTML: escaping would change them.
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])


# vLLM looks for a template's variables without the three globals, so a request may shadow these.
_BARE: Final = _environment()
_ENVIRONMENT: Final = _environment()
_ENVIRONMENT.filters["tojson"] = _tojson
_ENVIRONMENT.globals["raise_exception"] = _raise_exception
_ENVIRONMENT.globals["strftime_now"] = _strftime_now


class ChatTemplate:
    """One compiled template. Immutable."""

    def __init__(self, source: str) -> None:
        """Raises NoTokensError for a template that does not compile."""
        self.source = source
        try:
            tree = _BARE.parse(source)
            self._template = _ENVIRONMENT.from_string(source)
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
    ) -> str:
        """The prompt text. Raises NoTokensError with whatever the template complains about."""
        tail = ""
        if continue_final_message:
            messages, tail = self._open_final_message(messages)
        try:
            text = self._template.render(
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
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


@lru_cache(maxsize=32)
def compiled(source: str) -> ChatTemplate:
    """The template of a text; bounded, because a trusted request may carry its own."""
    return ChatTemplate(source)
