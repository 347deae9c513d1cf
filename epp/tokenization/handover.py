"""What the child process with transformers hands to the serving process, and how it is asked for it.

transformers is the truth about templates, special tokens and encodings, because that is what engines run; it is also 300 MB.
So a child process imports it, once, at load (prove.py), and everything needed afterwards comes back as one JSON
object and one effective tokenizer.json. Called by epp.tokenization.local at start; runs on the event loop, blocks nothing.
"""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from epp.tokenization.absent import TokenizerError

# Importing transformers takes 2 to 10 seconds, proving a large vocabulary as long again on a busy machine.
_TIMEOUT_S = 180.0

EFFECTIVE_TOKENIZER = "effective-tokenizer.json"
"""Name of the tokenizer file the child writes into its output folder."""


MISTRAL = "mistral_common"
"""Stands for the model type where the folder has a tokenizer of that library, which vLLM prefers."""


class Handover(msgspec.Struct, frozen=True):
    """Everything the serving process needs of a model folder."""

    transformers_version: str
    tokenizer_class: str
    model_type: str | None
    chat_template: str | dict[str, str] | None
    processor_template: str | None
    special_tokens: dict[str, str]
    """Template variables: bos_token, eos_token and so on."""
    prefix: tuple[int, ...]
    """Ids that encoding with special tokens puts in front."""
    suffix: tuple[int, ...]
    max_chars_per_token: int
    max_token_id: int
    isolated: tuple[str, ...]
    """Tokens a text may be cut in front of, proven on the corpus (pieces.py)."""
    fastokens_differs: str | None
    """Where fastokens gives other ids than transformers; None: proven equal on the corpus."""
    template_differs: str | None
    """Where our rendering gives another text than transformers; None: proven equal on the corpus."""


async def prove(folder: Path, output: Path) -> Handover:
    """Ask the child about `folder`; the effective tokenizer file is written into `output`.

    Raises TokenizerError with the child's complaint.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "epp.tokenization.prove", str(folder), str(output)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot start {sys.executable} to load the tokenizer: {error.strerror or error}") from None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer, complaints = await child.communicate()
    except TimeoutError:
        raise TokenizerError(f"{folder}: transformers did not load the tokenizer within {_TIMEOUT_S:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        lines = complaints.decode(errors="replace").strip().splitlines()
        raise TokenizerError(f"{folder}: {lines[-1] if lines else f'the proof ended with status {child.returncode}'}")
    try:
        return msgspec.json.decode(answer, type=Handover)
    except msgspec.MsgspecError as error:
        raise TokenizerError(f"{folder}: the process that loaded the tokenizer gave an answer that cannot be read: {error}") from None
