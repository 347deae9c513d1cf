"""The log: few lines, each worth reading. `LogReporter` turns what happens into lines, `log_format` gives them a form.

A state is logged when it changes; what repeats is logged the first time and then each time its count reaches a power of
ten. So no client and no broken pod can flood the log, and nothing is silent. Runs on the event loop; a line costs about
20 us and the hooks of an undisturbed request none.
"""

import logging
from collections.abc import Sequence

from epp.domain import Decision, EndCause, EndpointId, InferenceRequest, ParityLoss, RequestEnd, TokenizedRequest, TokenState
from epp.errors import RequestError
from epp.reporter import Reporter

logger = logging.getLogger("epp")

# How many rejections of one kind are logged one by one: enough to see what they have in common.
FIRST_REJECTIONS = 10

# How many distinct things are told apart; what a client can make up (model names) must not grow without limit.
MAX_KINDS = 1000

_OTHER = ("other",)

# A client chooses names and what a refusal quotes of its body; a log line needs no more of them than this.
MAX_QUOTED = 200

# Endpoints that one line names.
MAX_NAMED = 10


# What of KV events could not be used, where a word alone does not say what to do.
_KV_REMEDIES = {
    "flood": "more than an engine can have to say; what came is dropped, and learnt later where a replay can tell; "
    "an SGLang of this speed needs --page-size 16 or more",
    "topic": "a topic that kvEventsConfig.topicFilter does not begin",
    "unknown_pod": "an engine that connected to us names an address that no endpoint has, or several have",
    "both_directions": "it connects to us, and we to it: one of the two is enough",
    "port_label": "a label names no port; nobody listens there",
    "sockets": "no sockets or file descriptors are left: raise the limit of open files",
    "protocol": "what came was no ZMQ, or one message was larger than 2 MiB; is it the port of the KV events?",
    "lora_without_name": "an adapter has a number and no name, so its blocks cannot be told apart",
    "orphan": "blocks go on from others that were stored before we listened: is there a replay socket?",
    "too_many_blocks": "more than 2,000,000 in one medium",
}


def _quoted(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "..."


class _Tally:
    """Counts repeated things and says which occurrences deserve a line."""

    def __init__(self, first: int = 1) -> None:
        self._first = first
        self._counts: dict[tuple[str, ...], int] = {}

    def due(self, *kind: str) -> int:
        """The count so far where a line is due, else 0."""
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = _OTHER
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return count if count <= self._first or is_power_of_ten(count) else 0


def is_power_of_ten(number: int) -> bool:
    """1, 10, 100 ..."""
    text = str(number)
    return text[0] == "1" and not text[1:].strip("0")


def _some(endpoints: Sequence[EndpointId]) -> str:
    """The first of them by name, and how many more."""
    more = len(endpoints) - MAX_NAMED
    return ", ".join(endpoints[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _so_far(count: int) -> str:
    return f" ({count} so far)" if count > 1 else ""


class LogReporter(Reporter):
    """Writes to the logger "epp"."""

    def __init__(self) -> None:
        self._rejections = _Tally(FIRST_REJECTIONS)
        self._without_tokens = _Tally()
        self._unmatched = _Tally()
        self._ends = _Tally()
        self._event_errors = _Tally()
        self._gaps = _Tally()
        self._plugin_errors = _Tally()
        self._scrape_reasons: dict[EndpointId, str] = {}
        self._missing: dict[EndpointId, set[str]] = {}
        self._stream_states: dict[tuple[EndpointId, int], str] = {}

    # --- a request ----------------------------------------------------------------------------------------------

    def tokenized(self, request: InferenceRequest, tokens: TokenizedRequest) -> None:
        if tokens.state is not TokenState.ABSENT:
            return
        model = _quoted(request.model)
        if count := self._without_tokens.due(model, tokens.reason or ""):
            detail = f": {_quoted(tokens.detail)}" if tokens.detail else ""
            logger.info("no tokens for model %r: %s%s%s", model, tokens.reason, detail, _so_far(count))

    def decided(self, decision: Decision) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("request %s goes to %s (%s)", _quoted(decision.request_id), decision.endpoint.id, decision.destination)

    def rejected(self, request: InferenceRequest | None, error: RequestError) -> None:
        model = _quoted(request.model) if request is not None else ""
        if count := self._rejections.due(error.code, model):
            said = _quoted(error.message)
            logger.info("rejected with %d %s, model %r: %s%s", error.http_status, error.code, model, said, _so_far(count))

    def ended(self, decision: Decision, end: RequestEnd) -> None:
        if end.cause is EndCause.UPSTREAM_FAILED and (count := self._ends.due("failed", decision.endpoint.id)):
            flags = ",".join(end.response_flags)
            logger.warning("endpoint %s failed a request: status %s, flags %s%s", decision.endpoint.id, end.status, flags, _so_far(count))
        elif end.cause is EndCause.AGED_OUT and decision.request is not None and (count := self._ends.due("aged out")):
            logger.warning(
                "nobody told the end of request %s; is Envoy's access log configured?%s", _quoted(decision.request_id), _so_far(count)
            )

    def unmatched_end(self, reason: str) -> None:
        if reason == "other_instance":  # every entry of the pickers beside us; counted
            return
        if count := self._unmatched.due(reason):
            logger.info("an access-log entry belongs to no open decision: %s%s", reason, _so_far(count))

    def plugin_failed(self, plugin: str, error: Exception) -> None:
        if count := self._plugin_errors.due(plugin, type(error).__name__):
            logger.error("plugin %s failed%s", plugin, _so_far(count), exc_info=error)

    # --- knowledge ----------------------------------------------------------------------------------------------

    def endpoints_changed(self, count: int) -> None:
        logger.log(logging.INFO if count else logging.WARNING, "the pool has %d endpoints", count)

    def endpoint_unreachable(self, endpoint: EndpointId, left: int) -> None:
        if left:
            logger.warning("endpoint %s takes no connections: it gets no requests until it does (endpoints left: %d)", endpoint, left)
        else:
            logger.error("endpoint %s takes no connections, and no other does: requests are sent nevertheless", endpoint)

    def endpoint_reachable(self, endpoint: EndpointId, count: int) -> None:
        logger.info("endpoint %s takes connections again (endpoints that do: %d)", endpoint, count)

    def endpoint_removed(self, endpoint: EndpointId) -> None:
        self._scrape_reasons.pop(endpoint, None)
        self._missing.pop(endpoint, None)
        for key in [key for key in self._stream_states if key[0] == endpoint]:
            del self._stream_states[key]

    def scrape_failed(self, endpoint: EndpointId, reason: str) -> None:
        if self._scrape_reasons.get(endpoint) != reason:
            self._scrape_reasons[endpoint] = reason
            logger.warning("metrics of %s cannot be read: %s; its last ones stay", endpoint, reason)

    def scrape_recovered(self, endpoint: EndpointId) -> None:
        if self._scrape_reasons.pop(endpoint, None) is not None:
            logger.info("metrics of %s can be read again", endpoint)

    def metric_missing(self, endpoint: EndpointId, metric: str) -> None:
        missing = self._missing.setdefault(endpoint, set())
        if metric not in missing:
            missing.add(metric)
            logger.warning("metrics of %s lack %s; is its engine type right?", endpoint, metric)

    def kv_stream_state(self, endpoint: EndpointId, rank: int, state: str) -> None:
        if self._stream_states.get((endpoint, rank)) != state:
            self._stream_states[endpoint, rank] = state
            level = logging.WARNING if state in {"lost", "partial"} else logging.INFO
            logger.log(level, "KV events of %s, rank %d: %s", endpoint, rank, state)

    def kv_gap(self, endpoint: EndpointId, missing: int) -> None:
        if count := self._gaps.due(endpoint):
            logger.warning("KV events of %s: %d messages missing%s", endpoint, missing, _so_far(count))

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        if count := self._event_errors.due(endpoint, reason):
            remedy = _KV_REMEDIES.get(reason)
            logger.warning("KV events of %s: %s%s%s", endpoint, reason.replace("_", " "), f" ({remedy})" if remedy else "", _so_far(count))

    def parity_lost(self, loss: ParityLoss) -> None:
        logger.error(
            "engines of model %s %s (%d of the last %d requests, on %s), so requests do not meet their prefixes. Likely cause: %s. "
            "What to do: docs/parity.md, %s",
            _quoted(loss.model), loss.seen, loss.wrong, loss.of, _some(loss.endpoints), loss.detail, loss.cause,
        )  # fmt: skip

    def parity_restored(self, model: str) -> None:
        logger.info("engines of model %s do what is expected of them again", _quoted(model))

    def parity_forgotten(self, model: str) -> None:
        logger.info(
            "the alarm about engines of model %s is over: those it was about restarted, emptied their caches or are gone", _quoted(model)
        )
