"""Answers on the wire: OpenAI's JSON objects and server-sent events, in vLLM's shape.

Pure. One `Reply` per HTTP request. Streaming writes one event per token, thousands a second in a demo, so the part of
an event that does not change is encoded once.
"""

import json
from dataclasses import dataclass
from typing import ClassVar

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Usage:
    """Token counts of one HTTP request, over all its prompts."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, object]:
        """The `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Reply:
    """The form of one answer; the subclasses say what differs between the two APIs."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, id_: str, model: str, created: int) -> None:
        self._head = {"id": id_, "object": self.kind, "created": created, "model": model}
        self._chunk_head = {**self._head, "object": self.chunk_kind}
        self._event_start = b"data: " + json.dumps(self._chunk_head).encode()[:-1] + b', "choices": ['

    def whole(self, choices: list[tuple[str, str]], usage: Usage) -> dict[str, object]:
        """The body of an answer that is not streamed; `choices` are (text, finish reason), one a prompt."""
        listed = [self._choice(index, text, reason) for index, (text, reason) in enumerate(choices)]
        return {**self._head, "choices": listed, "usage": usage.body()}

    def opening(self, index: int) -> bytes:
        """What comes before the first token of a choice."""
        raise NotImplementedError

    def token(self, index: int, text: str, finish_reason: str | None) -> bytes:
        """One token; `finish_reason` with the last one."""
        return self._event_start + json.dumps(self._delta(index, text, finish_reason)).encode() + b"]}\n\n"

    def closing(self, usage: Usage | None) -> bytes:
        """The usage, if it was asked for, and the end of the stream."""
        if usage is None:
            return DONE
        return b"data: " + json.dumps({**self._chunk_head, "choices": [], "usage": usage.body()}).encode() + b"\n\n" + DONE

    def _choice(self, index: int, text: str, finish_reason: str) -> dict[str, object]:
        raise NotImplementedError

    def _delta(self, index: int, text: str, finish_reason: str | None) -> dict[str, object]:
        raise NotImplementedError


class ChatReply(Reply):
    """/v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        """The role, as an event of its own."""
        delta = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self._event_start + json.dumps(delta).encode() + b"]}\n\n"

    def _choice(self, index: int, text: str, finish_reason: str) -> dict[str, object]:
        return {"index": index, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish_reason}

    def _delta(self, index: int, text: str, finish_reason: str | None) -> dict[str, object]:
        return {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": finish_reason}


class CompletionReply(Reply):
    """/v1/completions."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def opening(self, index: int) -> bytes:
        """Nothing."""
        return b""

    def _choice(self, index: int, text: str, finish_reason: str) -> dict[str, object]:
        return self._delta(index, text, finish_reason)

    def _delta(self, index: int, text: str, finish_reason: str | None) -> dict[str, object]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
