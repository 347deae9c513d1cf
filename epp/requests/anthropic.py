"""Anthropic messages: a conversation in blocks; and the counting of its tokens, which no prefix speeds up.

What vLLM would refuse in the messages is found where they are rendered (epp.tokenization.anthropic).
"""

from typing import Final

from epp.domain import Api
from epp.requests.shape import Shape, max_tokens_of

MESSAGES: Final = Shape(Api.MESSAGES, max_tokens=max_tokens_of("max_tokens"))
COUNT_TOKENS: Final = Shape(Api.OPAQUE, skip_response=True)
"""Its answer is a number that holds no usage."""
