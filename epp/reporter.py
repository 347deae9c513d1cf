"""The one observer. Every hook is a documented no-op; metrics, logs, the decision log and tests override some.

Called synchronously on the event loop from core and shell: a hook must not block, raise or keep references to
mutable arguments beyond the call, except that a Decision is never changed after `decided`.
"""

from collections.abc import Callable, Sequence

from epp.domain import Decision, Endpoint, EndpointId, InferenceRequest, ParityLoss, RequestEnd, TokenizedRequest
from epp.errors import RequestError


class Reporter:
    """Override what you need. Costs are per call of the hook, stated where they matter."""

    # --- a request, once each -------------------------------------------------------------------------------
    def tokenized(self, request: InferenceRequest, tokens: TokenizedRequest) -> None:
        """Token ids were found, or it is known why not. Once per request with a body."""

    def decided(self, decision: Decision) -> None:
        """An endpoint was chosen and counted against."""

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        """The request ends with an answer of ours; `request` is None where its body could not be parsed."""

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        """An answer ended; at most once per decision."""

    def chunks_came(self, decision: Decision, gaps_s: Sequence[float]) -> None:
        """Seconds between successive chunks of a streamed answer, where answers go through ext_proc; in batches of hundreds, before `ended`."""

    def unmatched_end(self, reason: str) -> None:
        """An access-log entry that closes nothing.

        "unknown_decision": of an earlier life of this picker, or closed before. "no_decision": of a request this picker did not
        route, or refused. "other_instance": routed by another picker.
        """

    # --- ext_proc streams ------------------------------------------------------------------------------------
    def stream_opened(self) -> None:
        """An ext_proc stream began."""

    def stream_closed(self, grpc_code: str, seconds: float) -> None:
        """It ended with this gRPC status name after this time."""

    def request_processed(self, seconds: float) -> None:
        """The request phase of a stream is answered, this long after its first message. Once per stream that picks."""

    def response_processed(self, seconds: float) -> None:
        """A stream that showed us an answer is over; the sum of the time spent on the answer's messages."""

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        """A plugin raised. A producer, scorer or hook was left out; a filter, picker or profile handler ends the request with 500.

        Called every time: a reporter that logs does so once for each plugin and type of error.
        """

    # --- the certificate of the gRPC port --------------------------------------------------------------------
    def certificate_loaded(self, expires_at: float) -> None:
        """A certificate is in use, valid until this Unix time in seconds."""

    def certificate_reload_failed(self) -> None:
        """The certificate's files changed to something that cannot be used; the one in use stays."""

    # --- knowledge -------------------------------------------------------------------------------------------
    def endpoints_changed(self, count: int) -> None:
        """The pool now has this many endpoints that take connections, as far as is known."""

    def pool_load(self, endpoints: Sequence[Endpoint]) -> None:
        """The endpoints whose metrics are fresh; every few seconds."""

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        """The endpoint has gone: forget what is kept about it, such as its series. Nothing more is reported of it after this."""

    def endpoint_unreachable(self, endpoint: EndpointId, left: int) -> None:
        """It takes no connections: it gets no requests while others, of which so many are left, do."""

    def endpoint_reachable(self, endpoint: EndpointId, count: int) -> None:
        """It takes connections again, as so many endpoints do with it."""

    def scrape_failed(self, endpoint: EndpointId, reason: str) -> None:
        """/metrics of an endpoint could not be read ("connect", "timeout", "status", "parse"). Every time, not only at first."""

    def scrape_recovered(self, endpoint: EndpointId) -> None:
        """/metrics of an endpoint could be read again after failures."""

    def metric_missing(self, endpoint: EndpointId, metric: str) -> None:
        """/metrics was read but lacks this family."""

    def kv_stream_state(self, endpoint: EndpointId, rank: int, state: str) -> None:
        """State of an endpoint's event stream: "connecting", "live", "replaying", "partial", "lost"."""

    def kv_gap(self, endpoint: EndpointId, missing: int) -> None:
        """Sequence numbers were skipped."""

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        """An event or batch could not be decoded or applied; low-cardinality reason."""

    # --- parity: whether what we expect of engines is what they do ---------------------------------------------
    def parity_settled(self, endpoint: EndpointId, model: str, verdict: str) -> None:
        """A request's blocks were "confirmed", "contradicted" or "unseen" by its endpoint's events. Once per request with a prediction."""

    def prompt_tokens_compared(self, endpoint: EndpointId, model: str, more: int) -> None:
        """An answer states how many tokens its prompt has: so many more than we counted, 0 where we are right. Where answers come by."""

    def hits_counted(self, endpoint: EndpointId, expected: int, found: int) -> None:
        """Hit tokens that some requests should have found at least, and how far the engine's counter went, other requests included."""

    def parity_lost(self, loss: ParityLoss) -> None:
        """Most of what was seen of a model lately was not as expected: its prefixes are not found.

        Once, until restored; again only where what the first said is over, and something else is not.
        """

    def parity_restored(self, model: str) -> None:
        """Most of it is again."""

    def parity_forgotten(self, model: str) -> None:
        """Neither lost nor restored: the engines it was lost at restarted, emptied their caches or are gone."""

    def prefill_ended(self, endpoint: EndpointId, model: str, seconds: float) -> None:
        """The last full block of a prompt was stored, so long after the decision. Not of prompts that were cached whole."""

    def index_size(self, endpoint: EndpointId, blocks: int) -> None:
        """Confirmed blocks the index holds for an endpoint; called at most about once a second each."""


_HOOKS = tuple(name for name in vars(Reporter) if not name.startswith("_"))


class Reporters(Reporter):
    """Tells several reporters, in order. A hook that only one of them overrides is that one's method: hooks are called for every request."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        for hook in _HOOKS:
            heard = [getattr(reporter, hook) for reporter in reporters if getattr(type(reporter), hook) is not getattr(Reporter, hook)]
            if heard:
                setattr(self, hook, heard[0] if len(heard) == 1 else _all(heard))


def _all(hooks: Sequence[Callable[..., None]]) -> Callable[..., None]:
    if len(hooks) == 2:  # metrics and the log: what hears nearly everything
        first, second = hooks

        def tell_both(*said: object) -> None:
            first(*said)
            second(*said)

        return tell_both

    def tell(*said: object) -> None:
        for hook in hooks:
            hook(*said)

    return tell
