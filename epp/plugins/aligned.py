"""Producer data, which is parallel to all endpoints of a cycle, as scorers need it: parallel to the candidates they were given."""

from collections.abc import Sequence

from epp.domain import Endpoint
from epp.scheduling.interfaces import Cycle


def aligned(cycle: Cycle, candidates: Sequence[Endpoint], values: Sequence[float]) -> Sequence[float]:
    """`values` of the candidates. Free where no filter removed anything, else O(candidates)."""
    if candidates is cycle.endpoints:
        return values
    position = cycle.position
    return [values[position[endpoint.id]] for endpoint in candidates]
