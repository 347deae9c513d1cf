"""Prompts that come as token ids, with media among them."""

from typing import Any

import pytest

from epp.domain import MediaSpan
from epp.tokenization.absent import NoTokensError, Reason
from epp.tokenization.generate import generate_prompts
from tests.unit.tokenization.encoders import ENCODER

PLAIN: dict[str, Any] = {"token_ids": [5, 6, 7, 8], "sampling_params": {}}


def features(**placeholders: list[tuple[str, int, int]]) -> dict[str, Any]:
    return {
        "mm_hashes": {modality: [identifier for identifier, _, _ in items] for modality, items in placeholders.items()},
        "mm_placeholders": {modality: [{"offset": o, "length": n} for _, o, n in items] for modality, items in placeholders.items()},
    }


def test_ids_are_taken_as_they_are() -> None:
    """Whatever reads as integers."""
    assert generate_prompts({**PLAIN, "token_ids": [1, True, 2.0]}, ENCODER, 10).ids == [[1, 1, 2]]


def test_media_come_in_the_order_of_their_places() -> None:
    """Of all modalities, with the hash that enters the engine's block hashes."""
    prompts = generate_prompts({**PLAIN, "features": features(image=[("i", 2, 2)], audio=[("a", 0, 1)])}, ENCODER, 10)
    assert prompts.media == [[MediaSpan("a", 0, 1), MediaSpan("i", 2, 2)]]
    assert prompts.partial is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token_ids": []}, Reason.ENGINE_REFUSES),
        ({"token_ids": None}, Reason.ENGINE_REFUSES),
        ({"token_ids": [1, -1]}, Reason.ENGINE_REFUSES),
        ({"token_ids": [1000]}, Reason.ENGINE_REFUSES),
        ({"token_ids": [1] * 11}, Reason.ENGINE_REFUSES),
        ({"sampling_params": None}, Reason.ENGINE_REFUSES),
        ({"cache_salt": "a/b"}, Reason.ENGINE_REFUSES),
        ({"content_parts": [{"type": "image"}]}, Reason.MULTIMODAL),
        ({"features": {"mm_hashes": 5}}, Reason.ENGINE_REFUSES),
        ({"features": features(image=[("i", 2, 10**15)])}, Reason.ENGINE_REFUSES),
        ({"features": features(image=[("i", 0, 2), ("j", 1, 2)])}, Reason.ENGINE_REFUSES),
        ({"features": features(image=[("i", 0, 0)])}, Reason.ENGINE_REFUSES),
        ({"features": {"mm_hashes": {"image": ["i"]}, "mm_placeholders": {}}}, Reason.ENGINE_REFUSES),
    ],
)
def test_what_is_refused_is_named(change: dict[str, Any], reason: Reason) -> None:
    """Or, for raw media, cannot be known."""
    with pytest.raises(NoTokensError) as absence:
        generate_prompts({**PLAIN, **change}, ENCODER, 10)
    assert absence.value.reason is reason
