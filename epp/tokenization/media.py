"""Media in prompts whose placeholders are known: vLLM's `features`, as its render endpoints give and its generate endpoint takes them.

`{"mm_hashes": {modality: [hash, ...]}, "mm_placeholders": {modality: [{"offset": .., "length": ..}, ...]}}` (spec/kv.md 4.6, 4.9).
The hashes enter the engine's block hashes (spec/kv.md 1.8). Pure; called once a prompt with features.
"""

from collections.abc import Mapping

import msgspec

from epp.domain import MediaSpan
from epp.tokenization.absent import refused


class _Placeholder(msgspec.Struct):
    offset: int
    length: int


class Features(msgspec.Struct):
    """What is known of a prompt's media."""

    mm_hashes: dict[str, list[str]] = {}
    mm_placeholders: dict[str, list[_Placeholder]] = {}

    def spans(self, tokens: int) -> list[MediaSpan]:
        """The media of a prompt of so many tokens, by offset. Raises NoTokensError for features the engine refuses."""
        spans = [
            MediaSpan(identifier, placeholder.offset, placeholder.length)
            for modality, placeholders in self.mm_placeholders.items()
            for identifier, placeholder in zip(self.mm_hashes.get(modality, ()), placeholders, strict=False)
        ]
        counts = {modality: len(hashes) for modality, hashes in self.mm_hashes.items()}
        spans.sort(key=lambda span: span.offset)
        end = 0
        for span in spans:
            if span.offset < end or span.length < 1:
                raise refused("placeholders of media must not overlap or be empty")
            end = span.offset + span.length
        if end > tokens or counts != {modality: len(placeholders) for modality, placeholders in self.mm_placeholders.items()}:
            raise refused("each of the media needs one hash and one placeholder within the prompt")
        return spans


def features_of(value: Mapping[str, object]) -> Features:
    """Raises NoTokensError for what the engine refuses."""
    try:
        return msgspec.convert(value, Features)
    except msgspec.ValidationError as error:
        raise refused(f"features: {error}") from None
