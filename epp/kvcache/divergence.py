"""How the chain of blocks an engine stored differs from the one that was expected of it, and what that makes likely.

An engine's chain is compared where ours should go on; where it went on from a parent of its own instead, its text is looked for
in the prompt. Pure; called by `predictions`, on the event loop, for chains no prediction explains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from epp.domain import BlockKey
from epp.kvcache.events import BlockStored
from epp.kvcache.keys import TOKEN_BYTES, Extras

# A chain that shares so many tokens with a prompt is about this prompt (spec/kv.md 8).
LEADING_TOKENS: Final = 16
_KEY_BYTES: Final = 40
# Tokens kept of a prompt to tell where it differs.
_KEPT_TOKENS: Final = 4096


class Cause(Enum):
    """Why an engine is likely to do something else than expected; a label value of epp_parity_lost."""

    TEMPLATE = "template"
    """Or tokenizer."""
    BOS = "bos"
    LORA = "lora"
    SALT = "salt"
    MEDIA = "media"
    BLOCK_SIZE = "block_size"
    EARLIER = "earlier"
    """Something at the beginning of the prompt; seen on requests whose beginning the engine had cached, in its own way."""
    VERSION = "version"
    """Of the engine, or its flags: elsewhere or before it fitted, or its events cannot be read."""
    INDEX = "index"
    """It is stale."""
    SILENT = "silent"
    """No events come."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where an engine's chain differs from the one that was expected."""

    cause: Cause
    token: int
    """First token of the prompt that differs; where tokens are equal, the beginning of the block whose key differs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as its engine is expected to see it."""

    chain: Sequence[BlockKey]
    """Keys of its full blocks."""
    packed: bytes
    """All its token ids (keys.pack_tokens)."""
    block_size: int
    lora: str | None
    extras: Sequence[Extras]
    """Of its first blocks."""
    cached: int
    """Leading blocks that events confirmed at the endpoint."""
    at_most: bool = False
    """It may find less of them: cache groups that nobody follows have a say."""

    @property
    def bytes(self) -> int:
        """What it holds."""
        return len(self.packed) + len(self.chain) * _KEY_BYTES

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.packed) // TOKEN_BYTES

    @property
    def found(self) -> int:
        """Leading blocks the endpoint finds for certain: the last token is always computed (spec/kv.md 8 rule 12)."""
        return 0 if self.at_most else min(self.cached, max(0, self.tokens - 1) // self.block_size)


def compare(prompt: Prompt, event: BlockStored, position: int, skip: int) -> Divergence | None:
    """How they differ; None where they have nothing to do with each other, or where blocks of another size were expected before it told."""
    if event.block_size != prompt.block_size:
        return None
    begin = position * prompt.block_size
    ours = prompt.packed[begin * TOKEN_BYTES : (begin + _KEPT_TOKENS) * TOKEN_BYTES]
    theirs = event.tokens[skip * event.block_size * TOKEN_BYTES :][: len(ours)]
    shared = _shared_tokens(ours, theirs)
    if shared >= prompt.block_size:
        return Divergence(_beside_tokens(prompt, event, position, skip), begin)
    leading = LEADING_TOKENS * TOKEN_BYTES
    if begin == 0 and (
        (len(theirs) > leading and theirs[TOKEN_BYTES:].startswith(ours[:leading]))
        or (len(ours) > leading and ours[TOKEN_BYTES:].startswith(theirs[:leading]))
    ):
        return Divergence(Cause.BOS, 0)
    if begin or shared >= LEADING_TOKENS or _have_text_in_common(ours, theirs):
        return Divergence(Cause.TEMPLATE, begin + shared)
    return None


def _have_text_in_common(ours: bytes, theirs: bytes) -> bool:
    """Whether some tokens from the second half of the one stand anywhere in the other: the same request, rendered otherwise."""
    length = min(len(ours), len(theirs)) // TOKEN_BYTES
    if length < 2 * LEADING_TOKENS:
        return False
    return any(
        theirs.find(ours[start * TOKEN_BYTES : (start + LEADING_TOKENS) * TOKEN_BYTES]) >= 0
        for start in (length // 2, length * 2 // 3, length - LEADING_TOKENS)
    )


def resemblance(prompt: Prompt, event: BlockStored) -> Divergence | None:
    """A chain that goes on from one of the engine's own, which may be ours under another name: what its text tells; None: nothing.

    Where it begins in the engine's prompt is known only in whole blocks: a shift within a block tells whether a token more or
    less stands somewhere before.
    """
    if event.block_size != prompt.block_size:
        return None
    tokens = len(prompt.packed) // TOKEN_BYTES
    width = LEADING_TOKENS * TOKEN_BYTES
    for start in (tokens - 2 * LEADING_TOKENS, tokens * 3 // 4, tokens // 2):
        at = event.tokens.find(prompt.packed[start * TOKEN_BYTES :][:width]) if start > 0 else -1
        if at < 0 or at % TOKEN_BYTES:
            continue
        shift = (at // TOKEN_BYTES - start) % event.block_size
        if event.lora != prompt.lora:
            return Divergence(Cause.LORA, 0)
        return Divergence(Cause.BOS if shift in (1, event.block_size - 1) else Cause.EARLIER, 0)
    return None


def _beside_tokens(prompt: Prompt, event: BlockStored, position: int, skip: int) -> Cause:
    """What else enters a block's hash."""
    if event.lora != prompt.lora:
        return Cause.LORA
    theirs = event.extras[skip] if event.extras else ()
    ours = prompt.extras[position] if position < len(prompt.extras) else ()
    kinds = {extra[0] for extra in {*ours} ^ {*theirs}}
    return Cause.SALT if "salt" in kinds else Cause.MEDIA


def _shared_tokens(ours: bytes, theirs: bytes) -> int:
    """Leading tokens that are equal, by bisection."""
    low, high = 0, min(len(ours), len(theirs)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if ours[: middle * TOKEN_BYTES] == theirs[: middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
