"""POST /v1/chat/completions: what its body says, as a `Chat` (spec/kv.md 4.3, steps 1 and 2).

Fields are read and refused as vLLM's request model does. Pure; called once a request.
"""

from collections.abc import Mapping
from typing import Final

from epp.tokenization.absent import refused
from epp.tokenization.chat import Chat, ChatSettings, check_cache_salt
from epp.tokenization.lax import bool_field, choice_field, int_field, object_field
from epp.tokenization.limits import limits_of
from epp.tokenization.messages import check_messages
from epp.tokenization.tools import tools_of

Fields = Mapping[str, object]

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def read_chat(body: Fields, settings: ChatSettings) -> Chat:
    """Raises NoTokensError where the engine refuses."""
    check_cache_salt(body.get("cache_salt"))
    template = body.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise refused("chat_template must be a string")
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise refused("continue_final_message and add_generation_prompt are both set")
    transfer = object_field(body, "kv_transfer_params")
    return Chat(
        messages=check_messages(body.get("messages")),
        tools=tools_of(body, exclude_when_choice_none=settings.exclude_tools_when_choice_none, auto_tool_choice=settings.auto_tool_choice),
        limits=limits_of(body, lambda: _max_output(body), settings.max_model_len),
        template=template,
        kwargs=object_field(body, "chat_template_kwargs") or {},
        fields={
            "add_generation_prompt": bool_field(body, "add_generation_prompt", default=settings.add_generation_prompt),
            "continue_final_message": bool_field(body, "continue_final_message", default=False),
            "documents": _documents(body.get("documents")),
            "reasoning_effort": choice_field(body, "reasoning_effort", EFFORTS),
        },
        add_special_tokens=bool_field(body, "add_special_tokens", default=False),
        transfer=None if bool_field(body, "echo", default=False) else transfer,
    )


def _max_output(body: Fields) -> int | None:
    newer = int_field(body, "max_completion_tokens")
    return int_field(body, "max_tokens") if newer is None else newer


def _documents(documents: object) -> object:
    if documents is None:
        return None
    if not isinstance(documents, list) or not all(
        isinstance(document, dict) and all(isinstance(value, str) for value in document.values()) for document in documents
    ):
        raise refused("documents must be a list of objects with string values")
    return documents
