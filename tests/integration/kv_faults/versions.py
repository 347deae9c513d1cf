"""Engines as they are found in the wild, each as a fleet of one pod (spec/kv.md 1.4, 1.5, 1.7, 6.4)."""

from dataclasses import replace

from epp.simulator.config import FleetConfig
from epp.simulator.events import EventFormat
from epp.simulator.hashing import HashForm
from epp.simulator.publisher import PublisherConfig
from tests.integration.kv_faults.conftest import CONFIG, ENGINE


def fleet(name: str, *, block_size: int = 16, hash_form: HashForm = HashForm.INT, seed: str = "", **publisher: object) -> FleetConfig:
    """One pod with a cache of about 1,300 tokens."""
    return replace(
        CONFIG,
        pods=1,
        pod_name=name,
        engine=replace(ENGINE, block_size=block_size, num_blocks=1280 // block_size),
        hash_form=hash_form,
        hash_seed=seed or CONFIG.hash_seed,
        publisher=PublisherConfig(**publisher),  # type: ignore[arg-type]  # passed through
    )


# Each has an encoding, a form of hashes, a shape of replies and a topic.
VERSIONS = (
    fleet("vllm-0-32", topic=""),
    fleet("vllm-0-32-bytes", hash_form=HashForm.BYTES, block_size=32),
    fleet("vllm-0-24-dev", form=EventFormat.MAPS, seed="0", replay_frames=3),
    fleet("vllm-0-17", form=EventFormat.ARRAYS, hash_form=HashForm.BYTES, block_size=64, replay_frames=3),
    fleet("vllm-0-9", form=EventFormat.FIRST_ARRAYS, hash_form=HashForm.SIGNED, seed="42", topic="", replay_frames=3),
    fleet("sglang", form=EventFormat.ARRAYS, hash_form=HashForm.SIGNED, block_size=8, replay_frames=3),
    fleet("llm-d-sim", first_sequence=1, topic="kv@{pod}@{model}"),
)
