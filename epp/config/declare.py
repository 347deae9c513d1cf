"""First step of loading.py: the list `plugins` to plugins with decoded parameters (spec/plugins.md 1.5, steps 1 and 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epp.config.decode import NOT_SUPPORTED_YET, Decoder
from epp.config.document import PluginSpec
from epp.config.draft import Draft
from epp.config.effective import Plugin
from epp.config.known import ALIASES, REMEDIES, RENAMED, TYPES
from epp.config.nodes import Node, closest, did_you_mean
from epp.scheduling.params import NoParams
from epp.scheduling.registry import PluginType


@dataclass(slots=True)
class Declarations:
    """Fills a draft with what is declared."""

    draft: Draft
    decoder: Decoder

    def declare(self, specs: Sequence[PluginSpec]) -> None:
        """Every plugin of the list; problems are noted, and what has one is left out."""
        for spec in specs:
            name = spec.name or spec.type
            plugin_type = self._type(spec)
            if name in self.draft.plugins or name in self.draft.broken:
                self.draft.problems.add(spec.place, f"the name {name!r} is taken by another plugin; give one of them a name of its own")
                continue
            params = None if plugin_type is None else self._params(spec, plugin_type)
            if plugin_type is None or params is None:
                self.draft.broken.add(name)
            else:
                self.draft.plugins[name] = Plugin(name, plugin_type, params, spec.place)

    def _type(self, spec: PluginSpec) -> PluginType[Any] | None:
        written, place = spec.type, spec.place.key("type", spec.place.line)
        if written in ALIASES:
            self.draft.warn(place, f"{written!r} is a deprecated name of {ALIASES[written]!r}")
        found = self.draft.registry.get(ALIASES.get(written, written))
        if found is not None:
            return found
        if written in RENAMED:
            message = f"{written!r} no longer exists; use {RENAMED[written]}"
        elif written in TYPES:
            message = f"{written!r} is {NOT_SUPPORTED_YET}" + (f"; {REMEDIES[written]}" if written in REMEDIES else "")
        elif written:
            known = TYPES | set(self.draft.registry)
            hint = did_you_mean(written, known) or f"; supported are {', '.join(sorted(self.draft.registry))}"
            if not spec.name and (meant := closest(written, known)):
                self.draft.meant.add(meant)
            message = f"unknown {written!r}{hint}"
        else:
            message = "is empty"
        self.draft.problems.add(place, message)
        return None

    def _params(self, spec: PluginSpec, plugin_type: PluginType[Any]) -> object | None:
        node = spec.parameters
        if node is None or node.value is None:
            if plugin_type.params is NoParams:
                return NoParams()
            node = Node({}, spec.place.key("parameters", spec.place.line))
        return self.decoder.decode(node, plugin_type.params)
