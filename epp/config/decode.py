"""Nodes to frozen dataclasses, strictly: unknown keys, wrong types and values out of range are problems with line and path.

Knows the types of epp.scheduling.params and nothing about any plugin. Collects every problem instead of stopping at the
first. Keys of parameters match case-insensitively, an exact match first, as Go's encoding/json does (spec/plugins.md 1.1);
those of the document itself match exactly, as in Kubernetes' strict decoder. Used at start-up only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from epp.config.nodes import Node, Place, Problems, did_you_mean
from epp.config.shape import Key, keys, place_fields
from epp.config.units import EXAMPLES, parse_duration
from epp.scheduling.params import Between, Duration, MovedKeys, NoEffect, NoParams, NotYet

T = TypeVar("T")

NOT_SUPPORTED_YET = "known, not supported yet"


class _Invalid(Exception):  # noqa: N818  # never seen outside: the problem is already noted
    """This value cannot be decoded."""


@dataclass(slots=True)
class Decoder:
    """Decodes parts of one document."""

    problems: Problems
    exact_keys: bool = False
    without_effect: list[str] = field(default_factory=list)
    """Paths of keys that were given and change nothing."""

    def decode(self, node: Node, into: type[T]) -> T | None:
        """The record, or None where a problem was noted."""
        try:
            return cast("T", self._value(node, into))
        except _Invalid:
            return None

    def _fail(self, place: Place, message: str) -> _Invalid:
        self.problems.add(place, message)
        return _Invalid()

    def _value(self, node: Node, kind: Any) -> object:
        origin = get_origin(kind)
        if kind is Node:
            return node
        if kind is object:
            return node.plain()
        if origin is Annotated:
            return self._annotated(node, *get_args(kind))
        if origin in (Union, UnionType):
            inner = next(arg for arg in get_args(kind) if arg is not type(None))
            return None if node.value is None else self._value(node, inner)
        if origin is Literal:
            return self._choice(node, get_args(kind))
        if origin is tuple:
            return self._items(node, get_args(kind)[0])
        if origin is Mapping:
            return self._mapping(node, get_args(kind)[1])
        if is_dataclass(kind):
            return self._record(node, cast("type", kind))
        return self._scalar(node, kind)

    def _annotated(self, node: Node, kind: Any, *marks: object) -> object:
        value = self._value(node, kind)
        for mark in marks:
            if isinstance(mark, Between) and isinstance(value, int | float) and not mark.low <= value <= mark.high:
                raise self._fail(node.place, f"{value} is out of range, must be {mark.low:g} to {mark.high:g}")
            if isinstance(mark, NoEffect) and node.value is not None:
                self.without_effect.append(node.place.path)
        return value

    def _choice(self, node: Node, allowed: Sequence[object]) -> object:
        if node.value in allowed:
            return node.value
        words = [str(word) for word in allowed]
        hint = did_you_mean(str(node.value), words) or f"; allowed are {', '.join(words)}"
        raise self._fail(node.place, f"unknown {_what(node)}{hint}")

    def _items(self, node: Node, kind: Any) -> tuple[object, ...]:
        if not isinstance(node.value, tuple):
            raise self._fail(node.place, f"must be a list, not {_what(node)}")
        items: list[object] = []
        failed = False
        for item in node.value:
            try:
                items.append(self._value(item, kind))
            except _Invalid:
                failed = True
        if failed:
            raise _Invalid
        return tuple(items)

    def _mapping(self, node: Node, kind: Any) -> dict[str, object]:
        if not isinstance(node.value, Mapping):
            raise self._fail(node.place, f"must be a mapping, not {_what(node)}")
        return {key: self._value(value, kind) for key, value in node.value.items()}

    def _scalar(self, node: Node, kind: Any) -> object:
        value = node.value
        if kind is Duration:
            if not isinstance(value, str):
                raise self._fail(node.place, f"must be {EXAMPLES}, not {_what(node)}")
            try:
                return parse_duration(value)
            except ValueError as error:
                raise self._fail(node.place, str(error)) from None
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise self._fail(node.place, f"must be a finite number, not {value}")
            return float(value)
        if type(value) is not kind:
            raise self._fail(node.place, f"must be {_NAMES[kind]}, not {_what(node)}")
        return value

    def _record(self, node: Node, kind: type) -> object:
        if kind is NoParams:
            self.without_effect += [child.place.path for child in _children(node)]
            return NoParams()
        if not isinstance(node.value, Mapping):
            raise self._fail(node.place, f"must be a mapping, not {_what(node)}")
        values: dict[str, object] = dict.fromkeys(place_fields(kind), node.place)
        failed = False
        for written, child in node.value.items():
            try:
                key = self._key(kind, written, child)
                if child.value is None:
                    continue  # as if it were absent
                if key.field in values:
                    raise self._fail(child.place, "is given twice, in different spellings; keep one")
                values[key.field] = None  # a bad value is not missing as well
                value = self._value(child, key.kind)
                self._refuse_not_yet(child, key, value)
                values[key.field] = value
            except _Invalid:
                failed = True
        for key in keys(kind).values():
            if key.required and key.field not in values:
                failed = True
                self.problems.add(node.place, f"{key.name} is missing")
        if failed:
            raise _Invalid
        try:
            return kind(**values)
        except ValueError as error:
            raise self._fail(node.place, str(error)) from None

    def _key(self, kind: type, written: str, child: Node) -> Key:
        """The key that is meant."""
        known = keys(kind)
        if written in known:
            return known[written]
        folded = {} if self.exact_keys else {name.lower(): key for name, key in known.items()}
        if written.lower() in folded:
            return folded[written.lower()]
        moved = kind.MOVED.get(written) if isinstance(kind, MovedKeys) else None
        if moved is not None:
            raise self._fail(child.place, moved)
        hint = did_you_mean(written, known) or f"; allowed are {', '.join(known)}"
        raise self._fail(child.place, f"unknown key{hint}")

    def _refuse_not_yet(self, node: Node, key: Key, value: object) -> None:
        """Note it and go on: nothing that follows depends on it."""
        if key.has(NotYet) and value != key.default:
            shown = f"{_what(node)} is " if isinstance(value, str | int | float) else ""
            self.problems.add(node.place, f"{shown}{NOT_SUPPORTED_YET}; remove the key")


_NAMES: Mapping[object, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _what(node: Node) -> str:
    """How a person would name the value."""
    if isinstance(node.value, Mapping):
        return "a mapping"
    if isinstance(node.value, tuple):
        return "a list"
    if isinstance(node.value, bool):
        return str(node.value).lower()
    return "nothing" if node.value is None else repr(node.value)


def _children(node: Node) -> Sequence[Node]:
    return list(node.value.values()) if isinstance(node.value, Mapping) else [node]
