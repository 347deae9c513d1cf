"""What to ask vLLM's /tokenize for the ids of a chat or of a completions request (spec/kv.md 4.8).

The endpoint knows fewer fields than the APIs it stands in for: some are imitated by template arguments, and a request with any other of
those that shape its prompt has no tokens. Pure; called once a request in mode tokenize.
"""

from collections.abc import Mapping
from typing import Final

from epp.domain import Api
from epp.tokenization.absent import NoTokensError, Reason, refused
from epp.tokenization.completions import prompts_of
from epp.tokenization.lax import bool_field, object_field
from epp.tokenization.messages import has_media

Fields = Mapping[str, object]

# Fields /tokenize knows for a chat.
_CHAT_FIELDS: Final = (
    *("messages", "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template", "tools"),
    *("media_io_kwargs", "mm_processor_kwargs"),
)
# Fields it does not know, and which cannot be imitated.
_BEYOND: Final = ("truncate_prompt_tokens", "prompt_embeds", "suffix")


def tokenize_bodies(api: Api, body: Fields, model_name: str) -> list[Fields]:
    """One body a prompt. Raises NoTokensError where /tokenize would give other ids than the engine computes."""
    for name in _BEYOND:
        if body.get(name) is not None:
            raise NoTokensError(Reason.UNSUPPORTED, f"/tokenize knows no {name}")
    if api is Api.CHAT:
        return [_chat(body, model_name)]
    if api is Api.COMPLETIONS:
        add_special_tokens = bool_field(body, "add_special_tokens", default=True)
        prompts = prompts_of(body.get("prompt"))
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise NoTokensError(Reason.UNSUPPORTED, "/tokenize takes no token ids")
        return [{"model": model_name, "prompt": prompt, "add_special_tokens": add_special_tokens} for prompt in prompts]
    raise NoTokensError(Reason.UNSUPPORTED, f"/tokenize knows chats and completions, not {api.value}")


def _chat(body: Fields, model_name: str) -> Fields:
    if body.get("tools") == []:
        raise refused("tools must be a list that is not empty")
    if has_media(body.get("messages")):
        raise NoTokensError(Reason.MULTIMODAL, "/tokenize tells no hashes of media")
    if (object_field(body, "kv_transfer_params") or {}).get("prompt_token_ids") is not None:
        raise NoTokensError(Reason.UNSUPPORTED, "/tokenize knows no forwarded ids")
    if body.get("tools") and body.get("tool_choice") == "none":
        raise NoTokensError(
            Reason.UNSUPPORTED, "/tokenize knows no tool_choice, and an engine may leave out tools that are not to be called"
        )
    effort = body.get("reasoning_effort")
    kwargs = dict(object_field(body, "chat_template_kwargs") or {})
    if effort is not None:
        kwargs.setdefault("enable_thinking", effort != "none")
        kwargs["reasoning_effort"] = effort
    if body.get("documents") is not None:
        kwargs["documents"] = body["documents"]
    known = {name: body[name] for name in _CHAT_FIELDS if body.get(name) is not None}
    if isinstance(messages := known.get("messages"), list):
        known["messages"] = [_message(message) for message in messages]
    return {"model": model_name, **known, **({"chat_template_kwargs": kwargs} if kwargs else {})}


def _message(message: object) -> object:
    """As the chat API hands it on; /tokenize leaves the older name of reasoning as it is, and templates look for the newer one."""
    if not isinstance(message, dict) or message.get("reasoning_content") is None or message.get("reasoning") is not None:
        return message
    return {("reasoning" if name == "reasoning_content" else name): value for name, value in message.items() if name != "reasoning"}
