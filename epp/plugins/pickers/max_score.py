"""max-score-picker: the highest totals win, ties are broken by chance (spec/plugins.md 6.5). Stateless."""

from collections.abc import Sequence

from epp.domain import Endpoint
from epp.plugins.pickers.params import PickerParams
from epp.scheduling.interfaces import Cycle
from epp.scheduling.registry import Collaborators, PluginType, Role


class MaxScorePicker:
    """The best `maxNumOfEndpoints`, best first. Chance among equals, or the first-listed endpoint would get every idle request."""

    def __init__(self, name: str, params: PickerParams, collaborators: Collaborators) -> None:
        self.name = name
        self._count = params.count

    def pick(self, cycle: Cycle, candidates: Sequence[Endpoint], totals: Sequence[float]) -> list[Endpoint]:
        if self._count == 1:
            best = max(totals)
            return [candidates[cycle.rng.choice([i for i, total in enumerate(totals) if total == best])]]
        order = list(range(len(candidates)))
        cycle.rng.shuffle(order)
        order.sort(key=totals.__getitem__, reverse=True)
        return [candidates[i] for i in order[: self._count]]


TYPE = "max-score-picker"

PLUGIN = PluginType(TYPE, PickerParams, MaxScorePicker, frozenset((Role.PICKER,)), reads_bodies=False)
