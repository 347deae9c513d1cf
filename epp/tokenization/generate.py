"""POST /inference/v1/generate: the prompt as token ids (spec/kv.md 4.6).

The engine takes them as they are. Media may be part of them: placeholders with a hash each, in `features`, or raw in
`content_parts`, which the engine expands to tokens nobody else knows. Pure; called once a request.
"""

from collections.abc import Mapping

from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.backend import Prompts
from epp.tokenization.chat import check_cache_salt
from epp.tokenization.completions import checked_ids, ids_of
from epp.tokenization.encoder import Encoder
from epp.tokenization.lax import object_field
from epp.tokenization.limits import Limits
from epp.tokenization.media import features_of

Fields = Mapping[str, object]


def generate_prompts(body: Fields, encoder: Encoder, max_model_len: int | None) -> Prompts:
    """The one prompt. Raises NoTokensError."""
    check_cache_salt(body.get("cache_salt"))
    if object_field(body, "sampling_params") is None:
        raise refused("sampling_params is missing")
    given, features = body.get("token_ids"), object_field(body, "features")
    if not isinstance(given, list) or not given:
        raise refused("token_ids must be a list that is not empty")
    ids = Limits(None, None, max_model_len).cut(checked_ids(ids_of(given), encoder))
    if body.get("content_parts"):
        raise NoTokensError(Reason.MULTIMODAL, "the engine expands content_parts to tokens nobody else knows")
    return Prompts([ids], media=[features_of(features).spans(len(ids))] if features else ())
