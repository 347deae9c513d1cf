"""Events as engines of other versions write them, field by field; vLLM 0.32's own bytes are compared in test_recordings."""

from typing import Any

import msgspec
import pytest

from epp.simulator.errors import SimulatorError
from epp.simulator.events import AllBlocksCleared, BlockRemoved, BlockStored, EventFormat, KvEvent, encode_batch
from epp.simulator.publisher import PublisherConfig

EVENTS: list[KvEvent] = [
    BlockStored([7, 8], 6, [1, 2, 3, 4], 2, 1, "adapter", [["adapter"], ["adapter"]]),
    BlockRemoved(b"\x05" * 32),
    AllBlocksCleared(),
]
STORED = ["BlockStored", [7, 8], 6, [1, 2, 3, 4], 2, 1, "GPU", "adapter", [["adapter"], ["adapter"]], 0, "full_attention"]
MAP = {"type": "BlockRemoved", "block_hashes": [b"\x05" * 32], "medium": "GPU", "group_idx": 0}


def encoded(form: EventFormat) -> Any:  # lists or maps, as it comes
    return msgspec.msgpack.decode(encode_batch(1.5, EVENTS, form))


def test_maps_in_an_array() -> None:
    """vLLM 0.24 to 0.32."""
    ts, events, rank = encoded(EventFormat.MAPS_IN_ARRAY)
    assert (ts, rank) == (1.5, 0)
    assert list(events[0].values()) == STORED
    assert events[1:] == [MAP, {"type": "AllBlocksCleared"}]


def test_maps() -> None:
    """The batch is one too."""
    batch = encoded(EventFormat.MAPS)
    assert (batch["ts"], batch["data_parallel_rank"]) == (1.5, 0)
    assert batch["events"] == encoded(EventFormat.MAPS_IN_ARRAY)[1]


def test_arrays() -> None:
    """Every field at the position it was given when it was invented."""
    assert encoded(EventFormat.ARRAYS) == [1.5, [STORED, list(MAP.values()), ["AllBlocksCleared"]], 0]


def test_first_arrays() -> None:
    """No rank, no medium, no adapter's name."""
    assert encoded(EventFormat.FIRST_ARRAYS) == [1.5, [STORED[:6], list(MAP.values())[:2], ["AllBlocksCleared"]]]


@pytest.mark.parametrize("topic", ["kv@{ip}", "{", "{}", "{host.x}"])
def test_a_topic_with_other_names(topic: str) -> None:
    """The sentence tells which there are."""
    with pytest.raises(SimulatorError, match=r"--events-topic .*\{host\}, \{port\}"):
        PublisherConfig(topic=topic).topic_of(pod="p", host="h", port=1, model="m")
