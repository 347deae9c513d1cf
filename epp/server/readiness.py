"""What probes are told of this process (spec/protocol.md 5.6): alive while the loop lives, ready while routing is good.

Pure; owned and told by the composition root, asked by `health` on the event loop (implements interfaces.Health).
"""

from epp import names


class Readiness:
    """Ready: endpoints listed, tokenizer loaded or failed for good, first replays over; until a signal says to drain."""

    ASK_FOR_ALL = frozenset(("", "readiness", names.EXT_PROC_SERVICE))

    def __init__(self) -> None:
        self.synced = False
        """The endpoints are listed; there may be none."""
        self.learnt = False
        """What routing knows beyond them is there, or does not come."""
        self.draining = False

    def serving(self, service: str) -> bool | None:
        """As llm-d without leader election, but "liveness" survives a drain (8, D11).

        Other names do not wait for what is learnt: charts make "inference-extension" their liveness probe, which would kill a slow start.
        """
        if service == "liveness":
            return True
        return self.synced and not self.draining and (self.learnt or service not in self.ASK_FOR_ALL)
