"""One plugin record to one plugin instance, and what an instance says it reads and writes. Used at start-up only."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from epp.config.effective import Plugin
from epp.errors import ConfigError
from epp.scheduling.interfaces import Consumer, DataKey
from epp.scheduling.registry import INTERFACES, Collaborators


@runtime_checkable
class Provider(Protocol):
    """A producer, or a declaration that stands for data the shell provides."""

    def produces(self) -> Sequence[DataKey[Any]]:
        """The keys it provides."""


def instance(plugin: Plugin, collaborators: Collaborators) -> object:
    """The plugin. Raises ConfigError where its factory refuses or what it makes lacks a role it claims."""
    what = f"plugin {plugin.name!r} of type {plugin.type.name!r}"
    try:
        made = plugin.type.factory(plugin.name, plugin.params, collaborators)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} cannot be made: {error}") from error
    for role in plugin.type.roles & INTERFACES.keys():
        if not isinstance(made, INTERFACES[role]):
            raise ConfigError(f"{what} claims to be a {role.value}, but lacks methods of {INTERFACES[role].__name__}")
    return made


def provided(made: object) -> Sequence[DataKey[Any]]:
    """What it writes."""
    return made.produces() if isinstance(made, Provider) else ()


def required(made: object) -> Sequence[DataKey[Any]]:
    """What it reads and cannot do without."""
    return made.consumes() if isinstance(made, Consumer) else ()
