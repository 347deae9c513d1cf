"""Does a chat template want message content as text, or as a list of parts? (spec/kv.md 4.3.5)

The engine reads it off the template's syntax tree: "openai" if some loop runs over a message's content. Rules, as probed against
vLLM 0.32:

1. `messages`, and every name assigned from it (plain, filtered, tested or sliced), are message lists.
2. The target of a loop over a message list is a message.
3. A loop over `message.content` or `message["content"]` (filtered, tested or sliced) decides for "openai".
4. So does a loop inside a macro over a parameter that some call fills with a message's content.
5. So does a loop outside any macro over a variable literally called `content`.

A tree these rules cannot follow (a loop or assignment with several targets where one is expected) means "string". Pure.
"""

from collections.abc import Iterator
from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]


class _BeyondRulesError(Exception):
    """Several targets where the rules need one."""


def detect(tree: nodes.Template) -> ContentFormat:
    """The format a parsed template expects."""
    try:
        return "openai" if _loops_over_content(tree) else "string"
    except _BeyondRulesError:
        return "string"


def _loops_over_content(tree: nodes.Template) -> bool:
    messages = set(_aliases(tree, "messages"))
    message_names = [_target(loop.target) for loop in tree.find_all(nodes.For) if any(_refers(loop.iter, name) for name in messages)]
    in_macros: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        content_parameters = _content_parameters(tree, macro, message_names)
        for loop in macro.find_all(nodes.For):
            # A later macro node overrides only where it has something to say.
            in_macros[id(loop)] = content_parameters or in_macros.get(id(loop), set())
    for loop in tree.find_all(nodes.For):
        over = loop.iter
        by_message = any(_refers(over, name, "content") for name in message_names)
        by_parameter = isinstance(over, nodes.Name) and over.name in in_macros.get(id(loop), ())
        by_name = isinstance(over, nodes.Name) and over.name == "content" and id(loop) not in in_macros
        if by_message or by_parameter or by_name:
            _target(loop.target)
            return True
    return False


def _content_parameters(tree: nodes.Template, macro: nodes.Macro, message_names: list[str]) -> set[str]:
    """Rule 4: parameters of the macro that receive a message's content in some call."""
    parameters = [argument.name for argument in macro.args]
    found: set[str] = set()
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
            continue
        given = [*zip(parameters, call.args, strict=False), *((keyword.key, keyword.value) for keyword in call.kwargs)]
        found.update(
            parameter
            for parameter, value in given
            if parameter in parameters and any(_refers(value, name, "content") for name in message_names)
        )
    return found


def _aliases(tree: nodes.Template, name: str) -> Iterator[str]:
    """Rule 1: the name itself and all names assigned from it, directly or through others."""
    yield name
    pending, seen = [name], {name}
    while pending:
        source = pending.pop(0)
        for assignment in tree.find_all(nodes.Assign):
            if _refers(assignment.node, source):
                alias = _target(assignment.target)
                yield alias
                if alias not in seen:
                    seen.add(alias)
                    pending.append(alias)


def _target(node: nodes.Node) -> str:
    if not isinstance(node, nodes.Name):
        raise _BeyondRulesError
    return node.name


def _refers(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Is it the variable (or its attribute `key`), possibly filtered, tested or sliced?"""
    while isinstance(node, nodes.Filter | nodes.Test) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
        node = node.node
    if key is None:
        return _is_variable(node, name)
    if isinstance(node, nodes.Getitem):
        return _is_variable(node.node, name) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and node.attr == key and _is_variable(node.node, name)


def _is_variable(node: nodes.Node | None, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
