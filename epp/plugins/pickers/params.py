"""What every picker may be told (spec/plugins.md 6.5)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PickerParams:
    """Parameters of max-score-picker and random-picker."""

    max_num_of_endpoints: int = 1
    """Endpoints in the answer, the first is where the request goes; not positive: 1, as in llm-d."""

    @property
    def count(self) -> int:
        """The number that applies."""
        return max(self.max_num_of_endpoints, 1)
