"""Token ids of what was said, for the bound and the explanations: the model folder's own template and tokenizer, nothing of the picker.

The demo measures the picker, so it renders for itself: Jinja as transformers configures it, and Hugging Face's tokenizer. The
engines' count of each prompt has to come out, else the figures would be about other prompts. Called after each mode.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from epp.demo.bound import Spoken
from epp.demo.processes import DemoError
from epp.demo.records import Played


class Transcriber:
    """One model's template and tokenizer."""

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        """`folder` holds tokenizer.json and the chat template; `tokenizer`, if given, is used instead of that file."""
        self._tokenizer = tokenizer or Tokenizer.from_file(str(folder / "tokenizer.json"))
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(_template_text(folder))
        self._special = _special_tokens(folder)

    def transcribe(self, requests: Sequence[Played]) -> list[Spoken]:
        """Ids of each prompt and answer. Raises DemoError where a prompt's length is not what the endpoint said."""
        prompts = [self._template.render(messages=request.messages, add_generation_prompt=True, **self._special) for request in requests]
        encoded = self._tokenizer.encode_batch_fast(prompts, add_special_tokens=False)
        answers = self._tokenizer.encode_batch_fast([request.answer for request in requests], add_special_tokens=False)
        for request, encoding in zip(requests, encoded, strict=True):
            if request.error is None and request.prompt_tokens != len(encoding.ids):
                raise DemoError(
                    f"{request.request_id}: the endpoint counted {request.prompt_tokens} prompt tokens, the tokenizer gives {len(encoding.ids)}"
                )
        return [
            Spoken(prompt.ids, answer.ids[: max(0, request.answer_tokens - 1)])
            for request, prompt, answer in zip(requests, encoded, answers, strict=True)
        ]


def _template_text(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    return str(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])


def _special_tokens(folder: Path) -> dict[str, str]:
    """What templates know as bos_token and eos_token."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    return {name: text for name in ("bos_token", "eos_token") if isinstance(text := config.get(name), str)}
