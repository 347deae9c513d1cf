"""What a parameter class looks like in a file: its keys, their types and marks. Pure; used by decode.py and showing.py."""

from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from epp.config.nodes import Place
from epp.scheduling.params import NoEffect, NotYet, Spelled


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a record."""

    name: str
    """As it is written."""
    field: str
    kind: Any
    """The type, with its marks if it is Annotated."""
    required: bool
    default: object

    def has(self, mark: type[NoEffect] | type[NotYet]) -> bool:
        """Whether the field is annotated with it."""
        return any(isinstance(each, mark) for each in _marks(self.kind))


@cache
def keys(record: type) -> dict[str, Key]:
    """The keys of a dataclass by name, in its order; a field of type Place is no key."""
    hints = get_type_hints(record, include_extras=True)
    found = [_key(each, hints[each.name]) for each in fields(record) if hints[each.name] is not Place]
    return {key.name: key for key in found}


@cache
def place_fields(record: type) -> tuple[str, ...]:
    """The fields that hold where the record is written."""
    return tuple(name for name, hint in get_type_hints(record).items() if hint is Place)


def _key(each: Field[Any], kind: Any) -> Key:
    if each.default is not MISSING:
        default: object = each.default
    else:
        default = None if each.default_factory is MISSING else each.default_factory()
    required = each.default is MISSING and each.default_factory is MISSING
    return Key(_written(each.name, kind), each.name, kind, required, default)


def _written(name: str, kind: Any) -> str:
    """`block_size_tokens` is written `blockSizeTokens`, unless the field says otherwise."""
    for mark in _marks(kind):
        if isinstance(mark, Spelled):
            return mark.key
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _marks(kind: Any) -> tuple[object, ...]:
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()
