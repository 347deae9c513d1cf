"""Another model name in a body, and not one other byte changed: key order, number spellings and white space are the client's.

Key order enters the prompt (tools), and big integers must stay what they are, so nothing is ever decoded and encoded again
(spec/reference-observed.md). Pure; called by the director for the rare request whose model is rewritten.
"""

import json
import re
from itertools import islice
from typing import Final

from epp.errors import BadRequestError
from epp.requests.body import decode

_MODEL: Final = re.compile(rb'"model"\s*+:\s*+("(?:[^"\\]|\\.)*+"|null)', re.DOTALL)

# Each place where the name might stand costs one decoding of the body; sane bodies have one or two.
_PLACES_TRIED: Final = 16


def with_model(body: bytes, target: str) -> bytes:
    """`body`, a JSON object, naming `target` as its model: in place where it names one, else as its last field.

    Raises BadRequestError for an encoding other than UTF-8, where bytes cannot be spliced.
    """
    if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):
        raise BadRequestError("the model name can be rewritten only in a body in UTF-8")
    name = json.dumps(target, ensure_ascii=False).encode(errors="surrogatepass")
    # A nested object may have a model of its own, and of equal keys the last counts: what JSON readers make of it decides.
    for place in islice(_MODEL.finditer(body), _PLACES_TRIED):
        spliced = body[: place.start(1)] + name + body[place.end(1) :]
        if decode(spliced).fields.get("model") == target:
            return spliced
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    return body[:end] + comma + b'"model":' + name + body[end:]
