"""A plugin that only declares something: the shell reads its parameters, and what it provides satisfies others' needs.

The instance of data-layer plugins, token producers and parsers. Nothing here runs on the request path.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from epp.scheduling.interfaces import DataKey
from epp.scheduling.registry import Collaborators


class Declared:
    """Knows its name, and what exists because it is declared."""

    PROVIDES: ClassVar[tuple[DataKey[Any], ...]] = ()

    def __init__(self, name: str, params: object, collaborators: Collaborators) -> None:
        self.name = name

    def produces(self) -> Sequence[DataKey[Any]]:
        """Keys that scorers and producers may rely on."""
        return self.PROVIDES
