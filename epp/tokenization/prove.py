"""Child process: `python -m epp.tokenization.prove FOLDER OUTPUT` asks transformers for the truth about a model folder.

Loads the tokenizer as vLLM does (cut on the left, no network, no code from the folder), writes the effective tokenizer.json
to OUTPUT, proves fastokens and our template rendering equal to transformers on a corpus, and prints a Handover as JSON. What goes
wrong is one line on stderr and exit status 1. The only module of this package that imports transformers; never imported by the
serving process.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import huggingface_hub
import msgspec
import transformers

from epp.tokenization import corpus
from epp.tokenization.absent import NoTokensError, TokenizerError
from epp.tokenization.encoder import FastTokenizer, load_fastokens
from epp.tokenization.handover import EFFECTIVE_TOKENIZER, MISTRAL, Handover
from epp.tokenization.pieces import Pieces, TokenizerFile, isolated
from epp.tokenization.template import ChatTemplate, Message

# Files of a tokenizer that vLLM leaves to mistral_common.
_MISTRAL_FILES = ("tekken.json", "tokenizer.model.v*")
# Model types whose tokenizer_class vLLM overrides (it is wrong on the hub).
_PLAIN_BACKEND = frozenset(("internlm2", "step3_vl", "step3p7", "unlimited-ocr", "unlimited_ocr"))


def main(folder: Path, output: Path) -> Handover:
    """Raises TokenizerError for a folder that cannot be served."""
    folder = _found(folder)
    config = _json_object(folder / "config.json")
    model_type = config.get("model_type")
    tokenizer = _load(folder, model_type)
    effective = output / EFFECTIVE_TOKENIZER
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.save(str(effective))
    template = tokenizer.chat_template
    rendered = [text for source in _sources(template) for text in _render_all(tokenizer, source) if text is not None]
    texts = list(corpus.texts(tokenizer.all_special_tokens, rendered))
    prefix, suffix = _affixes(tokenizer, texts)
    vocabulary = tokenizer.get_vocab()
    model_vocabulary = config.get("vocab_size", config.get("text_config", {}).get("vocab_size", 0))
    return Handover(
        transformers_version=transformers.__version__,
        tokenizer_class=type(tokenizer).__name__,
        model_type=MISTRAL if any(any(folder.glob(pattern)) for pattern in _MISTRAL_FILES) else model_type,
        chat_template=template,
        processor_template=_processor_template(folder),
        special_tokens=dict(tokenizer.special_tokens_map),
        prefix=prefix,
        suffix=suffix,
        max_chars_per_token=max(map(len, vocabulary)),
        isolated=_isolated(tokenizer, effective, texts),
        max_token_id=max(*vocabulary.values(), tokenizer.vocab_size - 1, model_vocabulary - 1),
        fastokens_differs=_fastokens_difference(tokenizer, effective, texts),
        template_differs=next(filter(None, (_template_difference(tokenizer, source) for source in _sources(template))), None),
    )


def _found(folder: Path) -> Path:
    """The folder, or the one in Hugging Face's cache that belongs to a hub name; nothing is downloaded."""
    if folder.is_dir():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(str(folder), local_files_only=True))
    except (ValueError, OSError):
        raise TokenizerError(
            "no such folder, and no model of this name in the Hugging Face cache; local.path must hold the model's tokenizer.json and "
            "tokenizer_config.json"
        ) from None


def _load(folder: Path, model_type: object) -> Any:
    tokenizer_class = transformers.PreTrainedTokenizerFast if model_type in _PLAIN_BACKEND else transformers.AutoTokenizer
    tokenizer = tokenizer_class.from_pretrained(str(folder), truncation_side="left", local_files_only=True)
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(f"{type(tokenizer).__name__} has no tokenizer.json form; use the render endpoint for this model")
    return tokenizer


def _json_object(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return value if isinstance(value, dict) else {}


def _processor_template(folder: Path) -> str | None:
    """The template a multimodal processor of this folder would have; looked up in its files, as loading one needs vision libraries."""
    settings = _json_object(folder / "processor_config.json")
    if not settings and not (folder / "preprocessor_config.json").exists():
        return None
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    template = _json_object(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
    return template if isinstance(template, str) else None


def _sources(template: str | dict[str, str] | None) -> Sequence[str]:
    return list(template.values()) if isinstance(template, dict) else [template] if template else []


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return ids


def _affixes(tokenizer: Any, texts: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids special tokens add around every text of the corpus."""
    around = _ids(tokenizer, "x", add_special_tokens=True)
    inside = _ids(tokenizer, "x", add_special_tokens=False)
    at = next((i for i in range(len(around) - len(inside) + 1) if around[i : i + len(inside)] == inside), None)
    if at is None:
        raise TokenizerError("special tokens are not put around the text; use the render endpoint for this model")
    prefix, suffix = around[:at], around[at + len(inside) :]
    for text in texts:
        if _ids(tokenizer, text, add_special_tokens=True) != [*prefix, *_ids(tokenizer, text, add_special_tokens=False), *suffix]:
            raise TokenizerError(f"special tokens depend on the text {text[:40]!r}; use the render endpoint for this model")
    return tuple(prefix), tuple(suffix)


def _isolated(tokenizer: Any, effective: Path, texts: Sequence[str]) -> tuple[str, ...]:
    """Tokens to cut at; none where a text of the corpus cut at them has other ids, which would disprove the proof of pieces.py."""
    tokens = isolated(msgspec.json.decode(effective.read_bytes(), type=TokenizerFile))
    pieces = Pieces(tokens)
    whole = [_ids(tokenizer, text, add_special_tokens=False) for text in texts]
    cut = [pieces.encode(text, lambda piece: _ids(tokenizer, piece, add_special_tokens=False)).tolist() for text in texts]
    return tuple(tokens) if cut == whole else ()


def _fastokens_difference(tokenizer: Any, effective: Path, texts: Sequence[str]) -> str | None:
    try:
        fast: FastTokenizer = load_fastokens(effective)
    except Exception as error:  # noqa: BLE001 - whatever it cannot load, the fallback can
        return f"it does not load the vocabulary: {error}"
    for text in texts:
        if fast.encode(text, add_special_tokens=False).ids != _ids(tokenizer, text, add_special_tokens=False):
            return f"it gives other ids for {text[:60]!r}"
    return None


def _render_all(tokenizer: Any, source: str) -> Iterator[str | None]:
    """What transformers makes of each chat of the corpus; None where the template raises."""

    def render(messages: list[Message], tools: list[object] | None, add_generation_prompt: bool) -> str | None:  # noqa: FBT001 - as the corpus gives it
        try:
            text: str = tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=source, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception:  # noqa: BLE001 - templates refuse roles and tools they do not know in any way they like
            return None
        return text

    return starmap(render, corpus.chats())


def _template_difference(tokenizer: Any, source: str) -> str | None:
    try:
        ours = ChatTemplate(source)
    except NoTokensError as error:
        return error.detail
    for (messages, tools, add_generation_prompt), theirs in zip(corpus.chats(), _render_all(tokenizer, source), strict=True):
        try:
            text = ours.render(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=dict(tokenizer.special_tokens_map)
            )
        except NoTokensError:
            text = None
        if text != theirs:
            return f"a chat that ends with {str(messages[-1]['content'])[:40]!r} becomes another text"
    return None


if __name__ == "__main__":
    try:
        sys.stdout.buffer.write(msgspec.json.encode(main(Path(sys.argv[1]), Path(sys.argv[2]))))
    except TokenizerError as error:
        sys.exit(str(error))
    except Exception as error:  # noqa: BLE001 - reported to the parent in one line
        sys.exit(" ".join(f"transformers {transformers.__version__}: {type(error).__name__}: {error}".split()))
