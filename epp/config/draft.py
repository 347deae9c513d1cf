"""A configuration under construction: what loading.py's steps share and add to. Lives for one `load`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from epp.config.decode import NOT_SUPPORTED_YET
from epp.config.effective import Plugin
from epp.config.known import TYPES
from epp.config.nodes import NOWHERE, Place, Problems, did_you_mean
from epp.scheduling.registry import Registry, Role


@dataclass(slots=True)
class Draft:
    """Plugins so far, and what is to be said about the document."""

    registry: Registry
    problems: Problems
    plugins: dict[str, Plugin] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Declared names whose plugin could not be decoded: references to them are no further problem."""
    meant: set[str] = field(default_factory=set)
    """Names that plugins would have if their types were not misspelt: likewise."""
    warnings: list[str] = field(default_factory=list)

    def warn(self, place: Place, message: str) -> None:
        """One log line."""
        where = f"line {place.line}: {place.path}: " if place.line and place.path else ""
        self.warnings.append(f"{self.problems.source}: {where}{message}")

    def referred(self, reference: str, place: Place) -> Plugin | None:
        """The plugin a reference names, or None; notes a problem where nothing of that name is declared."""
        if reference in self.plugins or reference in self.broken or reference in self.meant:
            return self.plugins.get(reference)
        if not reference:
            self.problems.add(place, "pluginRef is empty; name a plugin of the list plugins")
        else:
            self.problems.add(place, f"no plugin {reference!r} is declared{did_you_mean(reference, self.plugins) or '; add it to plugins'}")
        return None

    def with_role(self, role: Role) -> list[Plugin]:
        """In order of declaration."""
        return [plugin for plugin in self.plugins.values() if role in plugin.type.roles]

    def ensure(self, type_: str, place: Place = NOWHERE) -> Plugin | None:
        """The plugin that defaults mean by a type string: the declared one of that name, or a new one with default parameters."""
        declared = self.plugins.get(type_)
        if declared is not None and declared.type.name == type_:
            return declared
        if type_ in self.broken:
            return None
        if declared is not None:
            self.problems.add(declared.place, f"the name {type_!r} is needed for the default of that type; choose another name")
            return None
        if type_ not in self.registry:
            self.problems.add(place, f"{type_!r} is {NOT_SUPPORTED_YET}" if type_ in TYPES else f"no plugin type {type_!r} exists")
            return None
        plugin_type = self.registry[type_]
        self.plugins[type_] = Plugin(type_, plugin_type, plugin_type.params())
        return self.plugins[type_]

    def set_params(self, plugin: Plugin, params: object) -> None:
        """Change the parameters of a plugin."""
        self.plugins[plugin.name] = replace(plugin, params=params)


def names(plugins: Iterable[Plugin]) -> str:
    """For a sentence: "'a', 'b'"."""
    return ", ".join(repr(plugin.name) for plugin in plugins)
