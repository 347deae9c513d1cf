"""What the server needs of the rest of the process; the composition root injects it. Called on the event loop only."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from epp.domain import DecisionId, RequestEnd, StreamClosed
from epp.extproc.events import Route


class RequestDirector(Protocol):
    """Answers "which endpoint?" and keeps the books (epp.picking.Director)."""

    def pick(
        self,
        headers: Mapping[str, str],
        subset: Sequence[str] | None,
        body: bytes | None,
        *,
        body_follows: bool = False,
        attributes: bytes | None = None,
    ) -> Route | Awaitable[Route]:
        """The endpoint for one request, or what will be it; `body` is None for a request without one.

        `body_follows`: there is a body, but the data plane is configured to route before it is seen. `attributes` name the
        request as only the data plane can (epp.extproc.events.RequestHeaders.attributes). Raises RequestError, after reporting it, where the request ends here. It must not await between counting a
        decision and returning it: a cancellation in between would lose the decision.
        """

    def ended(self, end: RequestEnd) -> None:
        """The access log told the end of an answer."""

    def unmatched(self, reason: str) -> None:
        """The access log told the end of a request that is none of ours: "no_decision", or "other_instance"."""

    def stream_closed(self, decision_id: DecisionId, closed: StreamClosed) -> None:
        """The ext_proc stream that made this decision is over, any way; exactly once per decision."""


class Health(Protocol):
    """Says whether a service of this process serves (spec/protocol.md 5.6)."""

    def serving(self, service: str) -> bool | None:
        """None: unknown service."""
