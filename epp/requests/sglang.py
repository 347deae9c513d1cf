"""SGLang's own API, POST /generate: a text or token ids, or a list of either; `extra_key` separates caches as a salt does.

Its prompts are read as those of completions, which is what they are to a tokenizer. It names a model only where an adapter is
asked for, and that name is never rewritten (spec/plugins.md 9.2).
"""

from typing import Final

from epp.domain import Api
from epp.requests.body import Body, decode
from epp.requests.shape import Fields, Shape

# Inputs that become tokens nobody but the engine knows.
_OTHER_INPUTS: Final = ("input_embeds", "image_data", "video_data", "audio_data")


def _read(data: bytes) -> Body:
    body = decode(data)
    fields = dict(body.fields)
    given = fields.get("input_ids")
    fields["prompt"] = fields.get("text") if given is None else given
    fields["cache_salt"] = fields.get("extra_key")
    fields["model"] = fields.get("lora_path")
    has_tokens = fields["prompt"] is not None and all(fields.get(key) is None for key in _OTHER_INPUTS)
    return Body(fields, body.unreadable, None if has_tokens else Api.OPAQUE)


def _max_tokens(fields: Fields) -> object:
    sampling = fields.get("sampling_params")
    return sampling.get("max_new_tokens") if isinstance(sampling, dict) else None


GENERATE: Final = Shape(Api.COMPLETIONS, max_tokens=_max_tokens, read=_read, model_is_text=False, rewritable=False)
