"""The tokenizer of a model as transformers, hence vLLM, builds it: not always what the folder's tokenizer.json says.

transformers picks a class by the model_type of config.json, and some classes split text in their own way: with Qwen2's, each
digit is a token of its own. Kept out of `tokens` because transformers takes seconds to import, which only this demo spends.
"""

import os
from pathlib import Path

from tokenizers import Tokenizer

from epp.demo.processes import DemoError


def load(folder: Path) -> Tokenizer:
    """Blocking, some seconds. Raises DemoError where transformers cannot load it."""
    # No remarks about frameworks that only models need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # noqa: PLC0415  # see above

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001  # transformers raises what its backends raise
        raise DemoError(f"transformers cannot load the tokenizer in {folder}: {error}") from None
    backend: Tokenizer = loaded.backend_tokenizer
    return backend
