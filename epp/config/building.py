"""An EffectiveConfig and its collaborators to a scheduler. Called once, by epp.app (and by replays and tests)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from epp.config.effective import EffectiveConfig, ProfileConfig
from epp.config.instances import instance
from epp.reporter import Reporter
from epp.scheduling.interfaces import Filter, Picker, Producer, ProfileHandler, Scorer
from epp.scheduling.profile import Profile
from epp.scheduling.registry import Collaborators, Role
from epp.scheduling.scheduler import Scheduler

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Built:
    """The running plugins. Parameters of the data layer are on the configuration."""

    config: EffectiveConfig
    plugins: Mapping[str, object]
    """Instances by plugin name."""
    scheduler: Scheduler


def build(config: EffectiveConfig, collaborators: Collaborators, reporter: Reporter) -> Built:
    """Make every plugin once. Raises ConfigError where a factory refuses its collaborators."""
    plugins = {name: instance(plugin, collaborators) for name, plugin in config.plugins.items()}
    scheduler = Scheduler(
        {profile.name: _profile(config, plugins, profile, reporter) for profile in config.profiles},
        cast("ProfileHandler", plugins[config.handler]),
        [cast("Producer", plugins[name]) for name in config.producers],
        plugins.values(),
        reporter,
    )
    return Built(config, plugins, scheduler)


def _profile(config: EffectiveConfig, plugins: Mapping[str, object], profile: ProfileConfig, reporter: Reporter) -> Profile:
    """`instance` has checked that each plugin is what its type claims."""
    listed = [(config.plugins[entry.plugin].type.roles, plugins[entry.plugin], entry.weight) for entry in profile.plugins]
    return Profile(
        profile.name,
        [cast("Filter", plugin) for roles, plugin, _ in listed if Role.FILTER in roles],
        [(cast("Scorer", plugin), weight) for roles, plugin, weight in listed if Role.SCORER in roles],
        next(cast("Picker", plugin) for roles, plugin, _ in listed if Role.PICKER in roles),
        reporter,
    )
