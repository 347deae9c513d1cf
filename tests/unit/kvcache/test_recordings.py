"""The index after what vLLM 0.32.0 really published (tests/data/vllm-0.32.0), beside a slow model of its cache."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from epp.domain import EndpointId, TokenizedRequest, TokenState
from epp.kvcache.events import AllCleared, Batch, decode
from epp.kvcache.index import PrefixIndex
from epp.kvcache.sequence import parse_seq
from epp.reporter import Reporter
from tests.unit.kvcache.cache_model import CacheModel

DATA = Path(__file__).parents[2] / "data" / "vllm-0.32.0"
BLOCK_SIZE = 32
POD = EndpointId("default/pod")


class NoProblems(Reporter):
    """A recording of a healthy engine gives none."""

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        raise AssertionError(reason)


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def payloads(name: str) -> list[bytes]:
    return [bytes.fromhex(line["payload"]) for line in lines(name)]


def new_index() -> PrefixIndex:
    return PrefixIndex(NoProblems(), default_block_size=16)


def matched(index: PrefixIndex, tokens: list[int], lora: str | None = None, salt: str | None = None) -> tuple[int, int]:
    """Leading blocks and hit tokens of one prompt on the pod."""
    request = TokenizedRequest(TokenState.EXACT, [tokens], lora=lora, cache_salt=salt)
    hits = index.match(request, [POD], now=0.0)
    return hits.blocks[0], hits.tokens[0]


def feed_model(model: CacheModel, payload: bytes) -> None:
    """The events of one payload, read by the letter of the wire format."""
    for event in msgspec.msgpack.decode(payload)[1]:
        match event["type"]:
            case "BlockStored":
                names = [extra for extra in (event["extra_keys"][0] or []) if extra != event["lora_name"]]
                salt = names[0] if names and event["parent_block_hash"] is None else None
                model.store(event["block_hashes"], event["parent_block_hash"], event["token_ids"], event["lora_name"], salt)
            case "BlockRemoved":
                for block in event["block_hashes"]:
                    model.remove(block)
            case "AllBlocksCleared":
                model.clear()


def assert_equal(index: PrefixIndex, model: CacheModel) -> None:
    """For every block the engine ever had, the index sees the prefix that ends with it exactly as far as the model does."""
    assert index.blocks(POD) == len(model.held)
    for lora, salt, tokens in set(model.contents.values()):
        expected = model.leading_blocks(list(tokens), lora, salt)
        blocks, hit = matched(index, list(tokens), lora, salt)
        assert blocks == expected
        # The last token is always computed, so a prompt that ends with a block cannot hit that block.
        assert hit == min(expected * BLOCK_SIZE, len(tokens) - BLOCK_SIZE)


@pytest.mark.parametrize("recording", ["requests", "eviction"])
def test_index_equals_the_model_block_by_block(recording: str) -> None:
    """After every batch: stores, evictions, duplicates, LoRA, salt and a reset leave the index as the engine's cache."""
    index, model = new_index(), CacheModel(BLOCK_SIZE)
    everything = payloads(f"{recording}/events.jsonl")
    for i, payload in enumerate(everything):
        index.apply(POD, 0, decode(payload))
        feed_model(model, payload)
        if i % 10 == 0 or i >= len(everything) - 2:
            assert_equal(index, model)

    assert index.blocks(POD) == 1  # both recordings end with a reset and one request


def without_reset(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Up to the AllBlocksCleared at the recording's end."""
    for batch in batches:
        if any(isinstance(event, AllCleared) for event in batch.events):
            return
        yield batch


@pytest.fixture(scope="module")
def full_index() -> PrefixIndex:
    """The index before the reset, when every request's blocks were cached."""
    index = new_index()
    for batch in without_reset(map(decode, payloads("requests/events.jsonl"))):
        index.apply(POD, 0, batch)
    return index


def prompts() -> Iterator[Any]:
    """Name, rendered prompt, LoRA and salt of every recorded request; one of a batch for each of its prompts."""
    for request in json.loads((DATA / "requests" / "requests.json").read_text()):
        rendered = request.get("render")
        lora = "adapter-a" if request["body"]["model"] == "adapter-a" else None
        for i, one in enumerate(rendered if isinstance(rendered, list) else [rendered] if rendered else []):
            if len(one["token_ids"]) >= BLOCK_SIZE:
                yield pytest.param(one["token_ids"], lora, request["body"].get("cache_salt"), id=f"{request['name']}-{i}")


@pytest.mark.parametrize(("tokens", "lora", "salt"), list(prompts()))
def test_a_recorded_request_finds_all_its_blocks(full_index: PrefixIndex, tokens: list[int], lora: str | None, salt: str | None) -> None:
    """Every full block of a request that vLLM served is found again from its token ids, LoRA and salt, and only from those."""
    full = len(tokens) // BLOCK_SIZE

    assert matched(full_index, tokens, lora, salt) == (full, (len(tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE)
    assert matched(full_index, tokens, lora, "another-tenant") == (0, 0)
    assert matched(full_index, tokens, "adapter-b", salt) == (0, 0)


def test_the_adapters_engines_mention_are_known(full_index: PrefixIndex) -> None:
    """The tokenizer can tell an adapter's name from an unknown model."""
    assert full_index.known_loras() == {"adapter-a"}


def test_a_replay_gives_the_same_index_as_the_live_stream(full_index: PrefixIndex) -> None:
    """The frames a replay socket sent hold the same batches under the same numbers."""
    frames = [[bytes.fromhex(frame) for frame in line["frames"]] for line in lines("requests/replay.jsonl")]
    live = [(line["seq"], payload) for line, payload in zip(lines("requests/events.jsonl"), payloads("requests/events.jsonl"), strict=True)]

    assert [(parse_seq(seq), payload) for _, _, seq, payload in frames[:-1]] == live

    index = new_index()
    for batch in without_reset(decode(payload) for _, _, _, payload in frames[:-1]):
        index.apply(POD, 0, batch)
    assert index.blocks(POD) == full_index.blocks(POD)
    assert all(matched(index, *case.values) == matched(full_index, *case.values) for case in prompts())
