"""Our rendering and encoding against transformers itself, over generated conversations and texts."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from epp import tokenization
from epp.tokenization import NoTokensError, Tokenization
from epp.tokenization.completions import completion_prompts
from epp.tokenization.content_format import ContentFormat
from epp.tokenization.template import compiled
from tests.integration.tokenization.conftest import RECORDING

VLLM_TEMPLATES = Path(__file__).parents[2] / "vllm" / "templates"
TEMPLATES: dict[str, tuple[Path, ContentFormat]] = {
    "recorded": (RECORDING / "model" / "chat_template.jinja", "string"),
    "chatml": (Path(tokenization.__file__).parent / "templates" / "chatml.jinja", "string"),
    "sink": (Path(__file__).with_name("sink.jinja"), "openai"),
    "thinker": (VLLM_TEMPLATES / "thinker.jinja", "string"),
    "clerk": (VLLM_TEMPLATES / "clerk.jinja", "openai"),
}

SPECIAL = ("<｜User｜>", "<｜end▁of▁sentence｜>")

words = st.sampled_from(
    ["hi", " padded ", "two\nlines", "", "é e\u0301", "日本", "😀", "</s>", "<b>&'\"", "{{ x }}", "CONTINUE_FINAL_MESSAGE_TAG"]
)
texts = words | st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
tools = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": words, "description": texts | st.none(), "parameters": objects}),
        }
    ),
    max_size=4,
)
calls = st.lists(
    st.fixed_dictionaries(
        {"id": words, "function": st.fixed_dictionaries({"arguments": objects, "name": words}), "type": st.just("function")}
    ),
    max_size=2,
)
contents = texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}, optional={"own": json_values}), max_size=3)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "ghost", "developer"]), "content": contents},
        optional={"tool_calls": calls, "reasoning_content": texts, "name": words},
    ),
    min_size=1,
    max_size=5,
)
flags = st.sampled_from([(True, False), (False, False), (False, True)])
documents = st.none() | st.lists(st.dictionaries(words, texts, max_size=2), max_size=2)
kwargs = st.dictionaries(
    st.sampled_from(["mood", "enable_thinking", "unused", "bos_token", "date_string", "reasoning_effort", "effort_note"]),
    json_values,
    max_size=2,
)


@pytest.fixture(scope="module")
def transformers_tokenizer(recorded_folder: Path) -> Any:
    """The truth."""
    return transformers.AutoTokenizer.from_pretrained(str(recorded_folder), truncation_side="left", local_files_only=True)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=150, deadline=None)
@given(messages=messages, tools=tools, documents=documents, flags=flags, kwargs=kwargs)
def test_rendering_equals_transformers(
    transformers_tokenizer: Any, name: str, messages: Any, tools: Any, documents: Any, flags: tuple[bool, bool], kwargs: dict[str, object]
) -> None:
    """The same text, or an error where it has one: filters, controls, continued messages, special tokens and kwargs."""
    source = TEMPLATES[name][0].read_text(encoding="utf-8")
    arguments = {"tools": tools, "documents": documents, "add_generation_prompt": flags[0], "continue_final_message": flags[1]}
    try:
        expected = transformers_tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **arguments, **kwargs)
    except Exception:  # noqa: BLE001 - whatever a template raises
        expected = None
    try:
        rendered = compiled(source).render(messages, **arguments, variables={**transformers_tokenizer.special_tokens_map, **kwargs})
    except NoTokensError:
        rendered = None
    assert rendered == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_content_formats_of_the_templates(name: str) -> None:
    """The corpus covers both."""
    source, content_format = TEMPLATES[name]
    assert compiled(source.read_text(encoding="utf-8")).content_format == content_format


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200) | st.lists(words | st.sampled_from([*SPECIAL, "   ", "\n\n", "123", "x" * 40])).map("".join))
def test_encoding_equals_transformers(transformers_tokenizer: Any, recorded: Tokenization, text: str) -> None:
    """The fast tokenizer of the serving process on any text."""
    loaded = recorded._backend._loaded  # type: ignore[attr-defined] # what load left in this process
    for add_special_tokens in (True, False):
        if expected := transformers_tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]:
            body = {"prompt": [text], "add_special_tokens": add_special_tokens}
            (ids,) = completion_prompts(body, loaded.encoder, None)
            assert list(ids) == expected
