"""decode-filter: keeps endpoints that can decode (spec/plugins.md 6.1). Stateless."""

from collections.abc import Sequence

from epp.domain import Endpoint
from epp.names import ROLE_LABEL
from epp.scheduling.interfaces import Cycle
from epp.scheduling.params import NoParams
from epp.scheduling.registry import Collaborators, PluginType, Role

# An endpoint without the label does everything.
DECODES = frozenset((None, "decode", "prefill-decode", "both", "encode-prefill-decode"))


class DecodeFilter:
    """Drops endpoints whose role label names only other stages."""

    by_labels = True

    def __init__(self, name: str, params: NoParams, collaborators: Collaborators) -> None:
        self.name = name

    def filter(self, cycle: Cycle, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        kept = [endpoint for endpoint in candidates if endpoint.labels.get(ROLE_LABEL) in DECODES]
        return candidates if len(kept) == len(candidates) else kept


PLUGIN = PluginType("decode-filter", NoParams, DecodeFilter, frozenset((Role.FILTER,)), reads_bodies=False)
