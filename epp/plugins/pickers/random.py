"""random-picker: any of the candidates, whatever their totals (spec/plugins.md 6.5). Stateless."""

from collections.abc import Sequence

from epp.domain import Endpoint
from epp.plugins.pickers.params import PickerParams
from epp.scheduling.interfaces import Cycle
from epp.scheduling.registry import Collaborators, PluginType, Role


class RandomPicker:
    """`maxNumOfEndpoints` different candidates, each equally likely."""

    def __init__(self, name: str, params: PickerParams, collaborators: Collaborators) -> None:
        self.name = name
        self._count = params.count

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        if self._count == 1:  # the usual case, at a fifth of the cost
            return [candidates[int(cycle.rng.random() * len(candidates))]]
        return cycle.rng.sample(candidates, min(self._count, len(candidates)))


PLUGIN = PluginType("random-picker", PickerParams, RandomPicker, frozenset((Role.PICKER,)), reads_bodies=False)
