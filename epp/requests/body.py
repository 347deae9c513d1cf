"""Request bodies: bytes to top-level fields, at the speed of msgspec and with the tolerance of Python's json.

vLLM reads bodies with Python's json, which accepts more than the standard (and msgspec) does: lone surrogates, NaN,
1e999, a byte order mark. Such a body, one with invalid UTF-8 (forwarded unchanged by the reference picker) and one nested too deep
is *unreadable*: a model server may accept it, so it is routed, but never tokenized. What both refuse is the client's
error. (spec/reference-observed.md, row "JSON".) Pure; called by epp.requests.parsers once a request.
"""

import json
from collections.abc import Mapping

import msgspec

from epp.domain import Api
from epp.errors import BadRequestError
from epp.requests.outline import Outline
from epp.requests.scan import top_level


class Body:
    """The decoded top level of a body. No dataclass, of which the compiled build would make instances slowly (setup.py)."""

    __slots__ = ("api", "fields", "unreadable")

    def __init__(self, fields: Mapping[str, object], unreadable: str | None = None, api: Api | None = None) -> None:
        self.fields = fields
        """With the client's key order; of an unreadable body only as good as the tolerant reading could make it."""
        self.unreadable = unreadable
        """Why it could not be read exactly; None: `fields` is the exact content."""
        self.api = api
        """What the content is, where that is another than the path says."""


_decode = msgspec.json.Decoder(dict[str, object]).decode
_decode_outline = msgspec.json.Decoder(Outline).decode


def decode(body: bytes) -> Body:
    """Raises BadRequestError for a body no JSON reader accepts, or that is no object (spec/protocol.md 1.5.1 row 3)."""
    try:
        return Body(_decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _decode_tolerantly(body, str(error))


def decode_outline(body: bytes) -> Body:
    """As `decode`, with no other fields than those of Outline, for a third less where nobody reads prompts.

    Numbers and encoding are not looked at in what is passed over, so less is unreadable; nothing more is refused.
    """
    try:
        return Body(_decode_outline(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return decode(body)


def _decode_tolerantly(body: bytes, refusal: str) -> Body:
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        text = body.decode(encoding, "replace")
    try:
        value: object = json.loads(text)
    except RecursionError:
        value = top_level(text)
    except ValueError as error:
        raise BadRequestError(f"error unmarshaling request bodyMap: {error}") from None
    if not isinstance(value, dict):
        raise BadRequestError("error unmarshaling request bodyMap: the body must be a JSON object")
    return Body({key: _speakable(member) for key, member in value.items()}, refusal)


def _speakable(member: object) -> object:
    """A text without half surrogate pairs, which neither a page of metrics nor a log can hold: a model's name becomes a label there."""
    return member.encode(errors="replace").decode() if isinstance(member, str) else member
