"""vLLM's own block hashes: SHA-256 over the pickle of (parent digest, tokens, extra keys) (spec/kv.md 2, 1.8).

Pure. Deliberately unrelated to epp's block keys: the picker must get along with whatever an engine publishes. Called
by the engine once a full block. The algorithm is an argument because vLLM has four of them; the simulator serves the
default one.
"""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from enum import Enum

ExtraKeys = tuple[tuple[str, ...], ...]
"""What a block's hash holds beside its tokens: ("lora", name, path) and ("cache_salt", salt), in this order."""

ExternalHash = int | bytes
"""A hash as KV events carry it."""

# vLLM 0.32 without PYTHONHASHSEED: the same in every process.
DEFAULT_SEED = "vllm-none-hash"


def sha256_pickle(value: object) -> bytes:
    """vLLM's default algorithm, `sha256`: 32 bytes over pickle protocol 5."""
    return hashlib.sha256(pickle.dumps(value, protocol=5)).digest()


class HashForm(Enum):
    """How events write a hash."""

    INT = "int"
    """Low 64 bits of the digest, big-endian: vLLM's default."""
    SIGNED = "signed"
    """The same as a signed number: SGLang, and vLLM before it hashed with SHA-256."""
    BYTES = "bytes"
    """All of the digest: VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0."""


class BlockHasher:
    """The hash chain of one engine."""

    def __init__(
        self, seed: str = DEFAULT_SEED, algorithm: Callable[[object], bytes] = sha256_pickle, form: HashForm = HashForm.INT
    ) -> None:
        self._algorithm = algorithm
        self._form = form
        self.root = algorithm(seed)
        """Parent of every first block, vLLM's NONE_HASH."""

    def digest(self, parent: bytes | None, tokens: Sequence[int], extra: ExtraKeys | None) -> bytes:
        """Digest of one full block; `parent` is None for the first."""
        return self._algorithm((self.root if parent is None else parent, tuple(tokens), extra))

    def external(self, digest: bytes) -> ExternalHash:
        """The digest as this engine's events carry it."""
        return external(digest, self._form)


def external(digest: bytes, form: HashForm = HashForm.INT) -> ExternalHash:
    """The digest in one of the forms of spec/kv.md 1.7.3."""
    if form is HashForm.BYTES:
        return digest
    return int.from_bytes(digest[-8:], "big", signed=form is HashForm.SIGNED)


def wire_extra_keys(extra: ExtraKeys | None) -> list[str] | None:
    """Extra keys as KV events carry them: tags and the adapter's path are gone, None where there are none."""
    return None if extra is None else [entry[1] for entry in extra]
