"""Whether an engine looks a request's prompt up in its prefix cache, as vLLM 0.32 decides.

Logprobs of prompt tokens are there only for tokens that are computed, so who asks for them has the whole prompt computed, and its
blocks published, whatever the engine holds. Pure; called by prefix producers once a request.
"""

from collections.abc import Mapping

from epp.domain import Api, InferenceRequest


def reads_cache(request: InferenceRequest | None) -> bool:
    """False: the prompt is computed anew."""
    body = None if request is None else request.body
    if request is None or body is None:
        return True
    match request.api:
        case Api.CHAT:
            # An echoed chat has as many logprobs as were asked for of the answer: none, unless asked for, and not "no logprobs".
            return body.get("prompt_logprobs") is None and not (body.get("echo") and body.get("top_logprobs", 0) is not None)
        case Api.COMPLETIONS:
            return body.get("prompt_logprobs") is None and not (body.get("echo") and body.get("logprobs") is not None)
        case Api.GENERATE:
            sampling = body.get("sampling_params")
            return not isinstance(sampling, dict) or _samples_with_cache(sampling)
        case _:
            return True


def _samples_with_cache(sampling: Mapping[str, object]) -> bool:
    """The same of vLLM's own sampling parameters, which may say it outright."""
    skips = sampling.get("skip_reading_prefix_cache")
    if skips is not None:
        return not skips
    return sampling.get("prompt_logprobs") is None and sampling.get("prompt_logprob_token_ids") is None
