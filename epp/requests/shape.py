"""What the parsers need to know of one API: a table row, filled by the module of that API.

Pure data, one reader and one check; no I/O, no state. Read by epp.requests.parsers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from epp.domain import AnswerFormat, Api
from epp.requests.body import Body

Fields = Mapping[str, object]


def accept(fields: Fields) -> None:
    """The check of an API that requires nothing, and the limit of one whose answers are no tokens."""


def max_tokens_of(*keys: str) -> Callable[[Fields], object]:
    """The limit of an answer that stands in the first of `keys` that holds a number."""

    def find(fields: Fields) -> object:
        for key in keys:
            value = fields.get(key)
            if isinstance(value, int) and not isinstance(value, bool):  # as an int, true would be 1 in the compiled build
                return value
        return None

    return find


@dataclass(frozen=True, slots=True)
class Shape:
    """One API, as far as routing looks at it."""

    api: Api
    check: Callable[[Fields], None] = accept
    """Raises BadRequestError where the body lacks what spec/protocol.md 1.5.1 demands."""
    max_tokens: Callable[[Fields], object] = accept
    """What limits the answer (spec/plugins.md 9.2); anything but a number limits nothing."""
    read: Callable[[bytes], Body] | None = None
    """Bytes to fields, where they are not those of a JSON object. Raises BadRequestError where no server could read them."""
    model_is_text: bool = True
    """A model that is no string is row 9 of spec/protocol.md 1.5.1; otherwise it is taken for none, which means the base model."""
    rewritable: bool = True
    """Its body is JSON that names the model, so that the name can be replaced (spec/protocol.md 2.3.13, step 3)."""
    answer: AnswerFormat = AnswerFormat.JSON
    skip_response: bool = False
    """Nothing in its answer is of interest (spec/protocol.md S14)."""
