"""vLLM's token-in path, POST /inference/v1/generate: the prompt as ids (spec/kv.md 4.6)."""

from typing import Final

from epp.domain import Api
from epp.requests.shape import Fields, Shape


def _max_tokens(fields: Fields) -> object:
    sampling = fields.get("sampling_params")
    return sampling.get("max_tokens") if isinstance(sampling, dict) else None


GENERATE: Final = Shape(Api.GENERATE, max_tokens=_max_tokens, model_is_text=False)
