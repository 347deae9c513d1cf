"""What plugins get: one scheduling cycle. Import it from `interfaces`; it stands apart because it is compiled (setup.py), and they are not."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from epp.domain import Endpoint, EndpointId, InferenceRequest, PrefixMatch, TokenizedRequest

if TYPE_CHECKING:
    from epp.scheduling.interfaces import DataKey

T = TypeVar("T")


class Cycle:
    """One scheduling cycle: the input of every plugin, and what producers computed for it.

    `endpoints` is the candidate list before any filter. Filters get and return sublists of it; per-endpoint data of
    producers is parallel to `endpoints`, found through `position`.
    """

    __slots__ = ("_data", "_position", "endpoints", "now", "request", "rng", "tokens")

    def __init__(
        self,
        request: InferenceRequest | None,
        tokens: TokenizedRequest | None,
        endpoints: Sequence[Endpoint],
        now: float,
        rng: random.Random,
    ) -> None:
        self.request = request
        """None for a request without a body (a GET)."""
        self.tokens = tokens
        self.endpoints = endpoints
        self.now = now
        """Monotonic seconds."""
        self.rng = rng
        self._position: dict[EndpointId, int] | None = None
        self._data: dict[DataKey[Any], object] = {}

    @property
    def position(self) -> Mapping[EndpointId, int]:
        """Index into `endpoints`."""
        if self._position is None:
            self._position = {endpoint.id: i for i, endpoint in enumerate(self.endpoints)}
        return self._position

    def put(self, key: "DataKey[T]", value: T) -> None:
        """Publish data of this cycle; a producer puts only its own keys."""
        self._data[key] = value

    def get(self, key: "DataKey[T]") -> T | None:
        """Data of this cycle, or None where its producer had nothing to say."""
        return cast("T | None", self._data.get(key))

    def prefix_matches(self) -> dict[str, PrefixMatch]:
        """All PrefixMatch data by producer, for the decision record."""
        if not self._data:
            return {}
        return {key.producer: value for key, value in self._data.items() if isinstance(value, PrefixMatch)}
