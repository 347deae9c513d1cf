"""Whether somebody listens at an endpoint's port, as connecting to it for /metrics shows: what stands in for a pod's readiness where a file lists endpoints.

Pure: told what each poll was a sign of (`poll_sign`) and when; used by `metrics`, one instance a poller. Measured is connecting, not answering:
an engine that takes the connection and says nothing, or nothing of use, is reachable. Refused connections are sure and quick; a connection
that nobody takes may be one packet lost, and is believed after a while. The data plane's word that it got no connection is believed at once,
until a poll over a new connection says otherwise: one that was made before goes on where no other is taken.
"""

from enum import Enum
from typing import Final

# In a row: one may fall between the end of a process and the beginning of the next.
REFUSALS: Final = 2
# As a usual readiness probe's.
SILENT_S: Final = 10.0
# Where the next poll refutes the data plane, the fault is on its side and may last: for so long it is not believed again.
UNBELIEVED_S: Final = 10.0


class Sign(Enum):
    """What one poll shows of an endpoint."""

    ANSWERED = "answered"
    """Somebody listens, whatever came of it."""
    REFUSED = "refused"
    """Nobody listens."""
    SILENT = "silent"
    """The connection was not established in time, or there is no way to the host."""
    UNCLEAR = "unclear"
    """The fault is ours: no free file, say."""


class Reachability:
    """What polls of one endpoint have shown so far."""

    __slots__ = ("_doubted", "_refusals", "_silent_since", "_unbelieved_until", "reachable")

    def __init__(self) -> None:
        self.reachable: bool | None = None
        """None: not known yet."""
        self._refusals = 0
        self._silent_since: float | None = None
        self._doubted = False
        """The data plane was believed, and no poll begun since has shown anything."""
        self._unbelieved_until: float | None = None

    def doubt(self, now: float) -> bool:
        """The data plane got no connection. True: that is news of `reachable`."""
        if self._unbelieved_until is not None and now < self._unbelieved_until:
            return False
        news = self._now_is(reachable=False)
        self._doubted = self._doubted or news
        return news

    def saw(self, sign: Sign, now: float, *, anew: bool) -> bool:
        """The next poll's sign; `now` in monotonic seconds. True: that is news of `reachable`.

        `anew`: it was begun while `reachable` was False, so over a new connection.
        """
        if self.reachable is False and not anew:
            return False  # it was under way when the data plane was believed
        # In a row means in a row: each sign ends what others began, also an unclear one.
        self._refusals = self._refusals + 1 if sign is Sign.REFUSED else 0
        if sign is not Sign.SILENT:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        doubted, self._doubted = self._doubted, False
        if sign is Sign.ANSWERED:
            if doubted:
                self._unbelieved_until = now + UNBELIEVED_S
            return self._now_is(reachable=True)
        silent_s = 0.0 if self._silent_since is None else now - self._silent_since
        return (self._refusals >= REFUSALS or silent_s >= SILENT_S) and self._now_is(reachable=False)

    def _now_is(self, *, reachable: bool) -> bool:
        news = self.reachable is not reachable
        self.reachable = reachable
        return news
