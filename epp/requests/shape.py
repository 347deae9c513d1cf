"""What the parsers need to know of one API: a table row, filled by the module of that API.

Pure data and one check; no I/O, no state. Read by epp.requests.parsers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from epp.domain import Api


@dataclass(frozen=True, slots=True)
class Shape:
    """One API, as far as routing looks at it."""

    api: Api
    check: Callable[[Mapping[str, object]], None]
    """Raises BadRequestError where the body lacks what no model server can do without (spec/protocol.md 1.5.1)."""
    max_tokens_keys: tuple[str, ...] = ()
    """Keys that limit the answer, strongest first (spec/plugins.md 9.2)."""


def accept(fields: Mapping[str, object]) -> None:
    """The check of an API that requires nothing but a model."""
