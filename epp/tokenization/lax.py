"""Values as vLLM's request models read them: pydantic in lax mode, for the few fields that shape a prompt.

Clients send "true" or 1 for a boolean and get away with it; a prompt that depends on it must too. Source: pydantic's
conversion table, probed against vLLM 0.32. Pure; called per request by the renderers of this room.
"""

from collections.abc import Mapping
from typing import Final

from epp.tokenization.absent import refused

_TRUE: Final = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE: Final = frozenset(("0", "off", "f", "false", "n", "no"))


def as_bool(value: object) -> bool | None:
    """The boolean pydantic would make of it; None: it would refuse."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        lowered = value.lower()
        return True if lowered in _TRUE else False if lowered in _FALSE else None
    return None


def as_int(value: object) -> int | None:
    """The integer pydantic would make of it; None: it would refuse."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return None


def bool_field(body: Mapping[str, object], name: str, *, default: bool) -> bool:
    """A boolean field that may be missing but not null. Raises NoTokensError where the engine refuses."""
    if name not in body:
        return default
    value = as_bool(body[name])
    if value is None:
        raise refused(f"{name} must be a boolean")
    return value


def int_field(body: Mapping[str, object], name: str) -> int | None:
    """An integer field that may be missing or null. Raises NoTokensError where the engine refuses."""
    value = body.get(name)
    if value is None:
        return None
    number = as_int(value)
    if number is None:
        raise refused(f"{name} must be an integer")
    return number


def choice_field(body: Mapping[str, object], name: str, choices: tuple[str, ...]) -> str | None:
    """A field that is one of a few words, missing, or null. Raises NoTokensError where the engine refuses."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or value not in choices:
        raise refused(f"{name} must be one of {', '.join(choices)}")
    return value


def object_field(body: Mapping[str, object], name: str) -> dict[str, object] | None:
    """A JSON object that may be missing or null. Raises NoTokensError where the engine refuses."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise refused(f"{name} must be an object")
    return value
