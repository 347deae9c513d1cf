"""single-profile-handler: the one profile runs once, and its result is the decision (spec/plugins.md 7). Stateless."""

from collections.abc import Sequence

from epp.domain import ProfileResult
from epp.scheduling.interfaces import Cycle
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators, PluginType, Role


class SingleProfileHandler:
    """epp.config makes sure that there is exactly one profile."""

    def __init__(self, name: str, params: NoParams, collaborators: Collaborators) -> None:
        self.name = name

    def pick_profiles(self, cycle: Cycle, profiles: Sequence[str], results: dict[str, ProfileResult | None]) -> Sequence[str]:
        return () if results else profiles

    def primary(self, cycle: Cycle, results: dict[str, ProfileResult | None]) -> str:
        return next(iter(results))


TYPE = "single-profile-handler"

PLUGIN = PluginType(TYPE, NoParams, SingleProfileHandler, frozenset((Role.PROFILE_HANDLER,)), reads_bodies=False)
