"""How a call ends, in gRPC's words (https://grpc.io/docs/guides/status-codes). Used by the service and both transports; pure.

A CANCELLED call was given up by its peer, which is told nothing: it has left.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from epp.errors import EppError


class Status(IntEnum):
    """The codes this server uses."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


CODE_NAMES: Final = {status: status.name for status in Status}
"""`Status.name`, which every stream is reported with, at a tenth of its cost."""


class Ending(NamedTuple):
    """A status, and for the peer's log why."""

    status: Status
    details: str = ""


DONE: Final = Ending(Status.OK)
GIVEN_UP: Final = Ending(Status.CANCELLED)


class CallError(EppError):
    """The peer did what ends its call with a status of its own, such as a message over the limit."""

    def __init__(self, status: Status, details: str) -> None:
        super().__init__(details)
        self.ending = Ending(status, details)
