"""OpenAI responses: a text, or a list of items, with instructions and tools beside it.

The input becomes a conversation where it is rendered (epp.tokenization.responses).
"""

from typing import Final

from epp.domain import Api
from epp.requests.opaque import requires
from epp.requests.shape import Shape, max_tokens_of

RESPONSES: Final = Shape(Api.RESPONSES, requires("responses", "input"), max_tokens_of("max_output_tokens"))
