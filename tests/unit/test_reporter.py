"""Several reporters hear what one would."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from epp.reporter import Reporter, Reporters

HOOKS = [name for name in vars(Reporter) if not name.startswith("_")]


def _listener(heard: list[tuple[object, ...]], *names: str) -> Reporter:
    """One that overrides these hooks."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _, *said: heard.append((name, *said))

    listener: Any = type("Listener", (Reporter,), {name: hook(name) for name in names})
    return listener()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("listeners", [0, 1, 2, 3])
def test_every_listener_hears_every_hook(name: str, listeners: int) -> None:
    """As it was said, however many there are; who does not listen is not asked."""
    heard: list[tuple[object, ...]] = []
    _, *parameters = inspect.signature(getattr(Reporter, name)).parameters.values()
    assert all(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters), "Reporters hands on by position only"
    said = tuple(each.name for each in parameters)
    reporters = Reporters([Reporter(), *(_listener(heard, name) for _ in range(listeners))])
    getattr(reporters, name)(*said)
    assert heard == [(name, *said)] * listeners
