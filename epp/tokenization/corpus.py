"""Texts on which a fast tokenizer must agree with transformers before it is trusted, and chats for the same with templates.

Chosen to touch each place where tokenizers differ: Unicode normalisation and categories, whitespace runs, numbers, code,
special tokens inside and beside text, words longer than any token, rare scripts, and length. Used by the child process of the proof
(prove.py) and by tests; never by the serving process.
"""

# ruff: noqa: RUF001 - letters of all scripts are the point here

import random
from collections.abc import Iterable, Iterator
from typing import Final

from epp.tokenization.template import Message

_TEXTS: Final = (
    "",
    " ",
    "\n",
    "Hello, world!",
    "  two  spaces   three\t\ttabs\n\n\nlines\r\n\r\n  \n x",
    "trailing space ",
    " leading space",
    "don't I'LL they'Re we'd 'quoted' can’t l'été",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9 ²³ ½ ١٢٣ ४५६",
    "naïve café e\u0301 n\u0303 ﬁ ﬂ Å Å ｆｕｌｌ ｗｉｄｔｈ ㍿ ①",
    "日本語のテキストと漢字、ひらがな。中文文本，没有空格。한국어 문장입니다.",
    "Привет, мир. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया. สวัสดีชาวโลก",
    "😀😃👍🏽👨‍👩‍👧‍👦🇩🇪 emoji 🙂 text❤️",
    "zero\u200bwidth\u200djoin\ufeffbom\u00a0nbsp\u2003em\u2028line\u2029para\u0085nel\x00nul\x1besc",
    "\U0001d573\U0001f9ff\U00020000 private \ue000 \uffff",
    "def f(x):\n    return {'a': [1, 2, x ** 2]}  # comment\n\n\nclass A(B):\n\tpass\n",
    'if (a!=b&&c||!d){printf("%d\\n",i++);} // → ≤ ≥ ≠\n#include <stdio.h>\n',
    '{"key": "value", "list": [1, 2.5, null, true], "nested": {"a\\u00e9": "\\n"}}',
    "https://example.org/path?query=1&other=%20x#frag user@example.org C:\\Users\\x ~/.config/",
    "a" * 300,
    " " * 200,
    "\n" * 50,
    "=-" * 100 + "+" * 64 + "#" * 64,
    "Pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrtsgesellschaftskapitän",
    "CamelCaseIdentifiersAndSNAKE_CASE_NAMES with_numbers_123abc456",
    "MiXeD cAsE ALLCAPS ﬀ ß ẞ İ ı ǅ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><s></s>[INST] <think>\n\n</think>",
)

_CONVERSATIONS: Final[tuple[list[Message], ...]] = (
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": " You are terse. "},
        {"role": "user", "content": "Wie spät ist es?\n"},
        {"role": "assistant", "content": "Zwölf."},
        {"role": "user", "content": "<b>&\"'</b> 😀"},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call00001", "function": {"arguments": {"city": "Zürich", "n": 1.0}, "name": "weather"}, "type": "function"}
            ],
        },
        {"role": "tool", "content": "12 °C", "tool_call_id": "call00001"},
    ],
)
_TOOLS: Final[tuple[object, ...]] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
)


def texts(special_tokens: Iterable[str], rendered: Iterable[str]) -> Iterator[str]:
    """All texts of the proof: the fixed ones, the vocabulary's own special tokens in and beside words, templates' output, a long mixture."""
    yield from _TEXTS
    for token in special_tokens:
        yield token
        yield f"a{token} b {token}{token}\n{token}c"
    rendered = list(rendered)
    yield from rendered
    rng = random.Random(0)  # noqa: S311 - a reproducible mixture, no secret
    words = [word for text in (*_TEXTS, *rendered) for word in text.split(" ")]
    yield " ".join(rng.choice(words) for _ in range(6000))
    for _ in range(40):
        yield "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0xD7FF), rng.randrange(0x10000, 0x1FFFF)))) for _ in range(60)
        )


def chats() -> Iterator[tuple[list[Message], list[object] | None, bool]]:
    """Conversations with tools or None, and whether the generation prompt is asked for."""
    for messages in _CONVERSATIONS:
        for tools in (None, list(_TOOLS)):
            for add_generation_prompt in (True, False):
                yield messages, tools, add_generation_prompt
