"""Prompts that are exact only so far, and prompts with media: what the index looks for."""

from array import array

from epp.domain import EndpointId, EngineHash, MediaSpan, TokenizedRequest, TokenState
from epp.kvcache.events import Batch, BlockStored
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import pack_tokens, wire_extras
from epp.reporter import Reporter

POD = EndpointId("default/pod")
TOKENS = list(range(100, 116))


def index_with(extra_keys: list[object] | None) -> PrefixIndex:
    index = PrefixIndex(Reporter(), default_block_size=4)
    hashes = [EngineHash(i) for i in range(1, 5)]
    extras = [wire_extras(entry, lora=None, first=not i) for i, entry in enumerate(extra_keys)] if extra_keys else None
    index.apply(POD, 0, Batch(0.0, 0, [BlockStored(hashes, None, pack_tokens(TOKENS), 4, extras=extras)]))
    return index


def test_only_what_is_exact_is_looked_for() -> None:
    """Two of four blocks, though all four are there."""
    index = index_with(None)
    partial = TokenizedRequest(TokenState.PARTIAL, [TOKENS], exact_tokens=[10])
    assert index.match(TokenizedRequest(TokenState.EXACT, [array("I", [*TOKENS, 1])]), [POD], 0.0).tokens == [16]
    assert index.match(partial, [POD], 0.0).tokens == [8]


def test_media_are_part_of_their_blocks() -> None:
    """The same placeholders of another picture are other blocks; the salt stands behind the media."""
    index = index_with([["salt"][:0], [["pic", 2]], [["pic", -2]], None])
    tokens = [*TOKENS, 1]
    for identifier, matched in (("pic", 16), ("other", 4)):
        request = TokenizedRequest(TokenState.EXACT, [tokens], media=[[MediaSpan(identifier, 6, 4)]])
        assert index.match(request, [POD], 0.0).tokens == [matched]
    salted = index_with([[["pic", 0], "s"], None, None, None])
    request = TokenizedRequest(TokenState.EXACT, [tokens], cache_salt="s", media=[[MediaSpan("pic", 0, 3)]])
    assert salted.match(request, [POD], 0.0).tokens == [16]
