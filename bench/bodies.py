"""The chat bodies that are sent: prose of the demo, cut to an exact size. Pure; the same seed makes the same bytes."""

import json
import random

from epp.demo import texts

MODEL = "bench"
SIZES = {"5 KB": 5 * 1024, "220 KB": 220 * 1024}

# Different prompts in turn, so that no cache of a whole prompt helps, while their words have all been seen: a fleet's normal state.
COUNT = 16

_WORDS_A_MESSAGE = 150


def chats(size: int, count: int = COUNT, seed: int = 1) -> list[bytes]:
    """`count` chat completion bodies of exactly `size` bytes each."""
    rng = random.Random(seed)
    return [_chat(rng, size) for _ in range(count)]


def _chat(rng: random.Random, size: int) -> bytes:
    trade = rng.choice(texts.TRADES)
    messages = [{"role": "system", "content": f"You are {trade.role}."}]
    missing = size - len(_encode(messages))
    while missing > 0:
        role = "user" if len(messages) % 2 else "assistant"
        message = {"role": role, "content": texts.user_message(rng, trade, _WORDS_A_MESSAGE)}
        messages.append(message)
        missing -= len(json.dumps(message)) + len(", ")
    while missing:
        last = messages[-1]["content"]
        if len(last) > -missing:
            messages[-1]["content"] = last[:missing] if missing < 0 else last + "." * missing
        else:  # not even its frame fits: the message before it fills the room
            messages.pop()
        missing = size - len(_encode(messages))
    return _encode(messages)


def _encode(messages: list[dict[str, str]]) -> bytes:
    return json.dumps({"model": MODEL, "max_tokens": 256, "temperature": 0.7, "messages": messages}).encode()
