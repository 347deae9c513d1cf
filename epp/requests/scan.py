"""The top-level fields of a JSON text that is nested too deep for any recursive reader.

One pass with a regular expression and a depth counter, over no more than the beginning: bounded time, no recursion. It trusts the text to be JSON: whether it is, the
model server decides. Pure; called by epp.requests.body in the rare case.
"""

import json
import re
from typing import Final

_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}:,]|[^\s"\[\]{}:,]++', re.DOTALL)

# The scan is Python at 0.2 us a character on the event loop. Model and prompt of any sane body stand in its beginning, and engines refuse
# nesting this deep themselves: what is not found here is answered as missing.
SCANNED_CHARACTERS: Final = 65_536

# Stands for a list or object the scan skipped: present, not empty, not known.
SKIPPED: Final[list[object]] = [None]


def top_level(text: str) -> dict[str, object] | None:
    """Keys of the outermost object with their scalar values, or SKIPPED; the last of two equal keys wins. None: it is no object.

    Only the first SCANNED_CHARACTERS are looked at.
    """
    if not text.lstrip().startswith("{"):
        return None
    fields: dict[str, object] = {}
    depth = 0
    key: str | None = None
    name = ""
    for match in _TOKEN.finditer(text, 0, SCANNED_CHARACTERS):
        lexeme = match.group()
        if lexeme in "[{":
            if depth == 1 and key is not None:
                fields[key] = SKIPPED
            depth += 1
        elif lexeme in "]}":
            depth -= 1
        elif depth != 1:
            continue
        elif lexeme == ":":
            key = name
        elif lexeme == ",":
            key = None
        elif key is None:
            name = str(_scalar(lexeme))
        else:
            fields[key] = _scalar(lexeme)
    return fields


def _scalar(lexeme: str) -> object:
    try:
        return json.loads(lexeme)
    except ValueError:
        return None
