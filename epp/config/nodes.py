"""YAML text to a tree of nodes that know their line and path, and the list of problems found in it.

The only module that knows the YAML library. Says nothing about what a configuration may hold: that is decode.py.
Used at start-up only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from difflib import get_close_matches

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from epp.errors import ConfigError

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written: line counted from 1 (0: nowhere, a default made it), and path from the document's root."""

    line: int = 0
    path: str = ""

    def key(self, key: str, line: int) -> "Place":
        """Of a value in a mapping here."""
        shown = key if key.isprintable() else repr(key)
        return Place(line, f"{self.path}.{shown}" if self.path else shown)

    def item(self, index: int, line: int) -> "Place":
        """Of an item in a list here."""
        return Place(line, f"{self.path}[{index}]")


NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. The value is a scalar, a tuple of nodes or a mapping of nodes."""

    value: "Scalar | tuple[Node, ...] | Mapping[str, Node]"
    place: Place

    def plain(self) -> object:
        """The value without places."""
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        if isinstance(self.value, Mapping):
            return {key: node.plain() for key, node in self.value.items()}
        return self.value


@dataclass(slots=True)
class Problems:
    """What is wrong with one document, so that all of it can be said at once."""

    source: str
    """Name of the file, or how the text was given."""
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, place: Place, message: str) -> None:
        """One sentence: what is wrong and the remedy."""
        where = f"line {place.line}: {place.path}: " if place.path else f"line {place.line}: " if place.line else ""
        self.found.append((place.line, f"{self.source}: {where}{message}"))

    def raise_if_any(self) -> None:
        """Raise ConfigError with one line a problem, in the order of the document."""
        if self.found:
            raise ConfigError("\n".join(sentence for _, sentence in sorted(self.found, key=lambda problem: problem[0])))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?", or nothing where no known word is close."""
    close = closest(word, known)
    return f", did you mean {close!r}?" if close else ""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that is likely to be meant, or nothing where none is close."""
    return next(iter(get_close_matches(word, list(known), n=1)), "")


def parse(text: str, source: str) -> Node:
    """The document as nodes. Raises ConfigError with source and line where it is no YAML, or a key is doubled."""
    try:
        return _Tree(source).node(YAML(typ="rt").load(text), Place(1, ""))
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply; remove brackets, or an alias that contains itself") from None
    except DuplicateKeyError as error:
        raise _at_mark(source, error, "the key is given twice; keep one") from None
    except MarkedYAMLError as error:
        raise _at_mark(source, error, error.problem or "is no YAML") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None


def _at_mark(source: str, error: MarkedYAMLError, problem: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1}: " if mark is not None else ""
    return ConfigError(f"{source}: {line}{problem}")


class _Tree:
    """Turns what the library loaded into nodes."""

    def __init__(self, source: str) -> None:
        self._source = source

    def node(self, loaded: object, place: Place) -> Node:
        if isinstance(loaded, CommentedMap):
            return Node({key: self._entry(loaded, key, place) for key in loaded}, place)
        if isinstance(loaded, CommentedSeq):
            items = enumerate(loaded)
            return Node(tuple(self.node(item, place.item(i, loaded.lc.item(i)[0] + 1)) for i, item in items), place)
        return Node(self._scalar(loaded, place), place)

    def _entry(self, mapping: CommentedMap, key: object, place: Place) -> Node:
        if not isinstance(key, str):
            raise ConfigError(f"{self._source}: line {place.line}: {place.path}: the key {key!r} must be text; put it in quotes")
        try:
            line = mapping.lc.key(key)[0] + 1
        except KeyError:  # merged from an anchor
            line = place.line
        return self.node(mapping[key], place.key(key, line))

    def _scalar(self, loaded: object, place: Place) -> Scalar:
        # The library's scalars are subclasses that remember their spelling.
        if loaded is None or isinstance(loaded, bool):
            return loaded
        if isinstance(loaded, int):
            return int(loaded)
        if isinstance(loaded, float):
            return float(loaded)
        if isinstance(loaded, (str, date)):
            return str(loaded)
        raise ConfigError(f"{self._source}: line {place.line}: {place.path}: a value of this kind is not understood; remove its tag")
