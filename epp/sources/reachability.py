"""Whether an endpoint takes connections, as reading its /metrics shows: what stands in for a pod's readiness where a file lists endpoints.

Pure: told how each poll went and when; used by `metrics`, one instance a poller. Anything an endpoint answers, if only an error, counts as
reachable. Refused connections are sure and quick; silence may be an engine that is busy, and is believed after a while.
"""

from typing import Final

# In a row: one may fall between the end of a process and the beginning of the next.
REFUSALS: Final = 2
# As a usual readiness probe's.
SILENT_S: Final = 10.0


class Reachability:
    """What polls of one endpoint have shown so far."""

    __slots__ = ("_refusals", "_silent_since", "reachable")

    def __init__(self) -> None:
        self.reachable: bool | None = None
        """None: not known yet."""
        self._refusals = 0
        self._silent_since: float | None = None

    def answered(self) -> bool:
        """It said something. True: that is news."""
        self._refusals, self._silent_since = 0, None
        return self._now_is(reachable=True)

    def refused(self) -> bool:
        """Nobody listens there. True: it has become unreachable by that."""
        self._silent_since = None
        self._refusals += 1
        return self._refusals >= REFUSALS and self._now_is(reachable=False)

    def silent(self, now: float) -> bool:
        """It did not answer in time. `now` in monotonic seconds. True: it has become unreachable by that."""
        self._refusals = 0
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since >= SILENT_S and self._now_is(reachable=False)

    def _now_is(self, *, reachable: bool) -> bool:
        news = self.reachable is not reachable
        self.reachable = reachable
        return news
