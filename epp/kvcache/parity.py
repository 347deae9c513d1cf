"""Whether what we expect of engines is what they do: an alarm when it is not (nobody else would notice).

Wrong tokens break nothing one could see: requests are answered, only never where their prefix is cached. So each request is a
witness, in up to four ways: what its endpoint's events say it stored, how many prompt tokens its answer states, how many of them
that found cached, and what the engine's counters say of the latter where answers do not come by. Where most of the
recent witnesses of a model speak against us, at one endpoint or at all of them, one alarm names endpoints and the likely cause; it ends when
most are right again there, or when what spoke against us is about engines that are not there any more. docs/parity.md is for those who read it.

Pure; told by the index's predictions and, of metrics, by the composition root, on the event loop.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from epp.domain import EndpointId, EndpointMetrics, ParityLoss
from epp.kvcache.counted_hits import REQUESTS, CountedHits
from epp.kvcache.divergence import Cause
from epp.kvcache.predictions import Answered, Settled, Verdict
from epp.reporter import Reporter

# Which share of recent findings must be wrong for an alarm, and below which it ends.
ALARM_SHARE: Final = 0.5
RESTORED_SHARE: Final = 0.25
# Findings without a wrong majority that make an endpoint one where things fit.
FITS_AT: Final = 4
# Hit tokens found, of those foreseen, below which a request or a counter says that we are wrong.
FOUND_SHARE: Final = 0.5
# Models with windows of their own, and endpoints of one; clients choose names, but only those of requests with tokens get here.
MAX_MODELS: Final = 1_000
MAX_ENDPOINTS: Final = 1_000

_TEXTS: Final = {
    Cause.TEMPLATE: "chat template or tokenizer",
    Cause.BOS: "beginning-of-sequence token",
    Cause.LORA: "LoRA name",
    Cause.SALT: "cache salt",
    Cause.MEDIA: "hashes of media",
    Cause.BLOCK_SIZE: "block size",
    Cause.EARLIER: "something at the beginning of the prompt",
    Cause.VERSION: "engine version",
    Cause.INDEX: "a stale index: events that were lost, or a cache that was emptied without a word",
    Cause.SILENT: "no KV events come from there: are they on, and is their port right?",
}
# What another version of an engine, or other flags, may change.
_OF_VERSIONS: Final = frozenset((Cause.TEMPLATE, Cause.BOS, Cause.MEDIA, Cause.EARLIER))
# Why events cannot be counted, where it is not that they are of another version: the index's words.
_OF_SHAPE: Final = frozenset(("block_size", "not_dense"))
_OF_THE_PAST: Final = frozenset(("orphan", "orphan_dropped"))


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """One way to be wrong."""

    seen: str
    """What engines do, in the alarm."""
    window: int = 40
    """Findings that are looked back at."""
    alarm_at: int = 8
    """How many of them must be wrong."""
    spread_s: float = 0.0
    """How long the window must have taken to fill."""
    requests: int = 1
    """Behind one finding."""


_BLOCKS: Final = _Kind("store other blocks than expected")
_COUNTS: Final = _Kind("count other prompt tokens than expected")
_HITS: Final = _Kind("do not find in their caches what they were taken to hold")
_COUNTED: Final = _Kind(
    "do not find in their caches, by their counters, what they were taken to hold", window=1, alarm_at=1, requests=REQUESTS
)
_SILENCE: Final = _Kind("publish none of the blocks they were expected to store", window=20, alarm_at=15, spread_s=10.0)


@dataclass(frozen=True, slots=True)
class _Finding:
    endpoint: EndpointId
    cause: Cause | None = None
    """None: things fit."""
    place: int = 0
    """The first token that differs, or by how many the counts do."""
    at: float = 0.0


class _Window:
    """The latest findings of one kind."""

    __slots__ = ("findings", "kind", "wrong")

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self.findings: deque[_Finding] = deque()
        self.wrong = 0

    def add(self, finding: _Finding) -> None:
        if len(self.findings) == self.kind.window:
            self.wrong -= self.findings.popleft().cause is not None
        self.findings.append(finding)
        self.wrong += finding.cause is not None

    def forget(self, endpoint: EndpointId) -> None:
        self.findings = deque(finding for finding in self.findings if finding.endpoint != endpoint)
        self.wrong = sum(finding.cause is not None for finding in self.findings)

    @property
    def share(self) -> float:
        return self.wrong / len(self.findings) if self.findings else 0.0

    @property
    def is_lost(self) -> bool:
        if self.wrong < self.kind.alarm_at or self.share < ALARM_SHARE:
            return False
        return self.findings[-1].at - self.findings[0].at >= self.kind.spread_s

    @property
    def fits(self) -> bool:
        return len(self.findings) >= FITS_AT and self.share < RESTORED_SHARE


@dataclass(slots=True)
class _Model:
    windows: dict[_Kind, _Window] = field(default_factory=dict)
    """Of all its endpoints together."""
    endpoints: dict[EndpointId, dict[_Kind, _Window]] = field(default_factory=dict)
    fitted: set[EndpointId] = field(default_factory=set)
    """Where things fitted until the engine began anew."""
    lost: dict[_Window, None] = field(default_factory=dict)
    """What the alarm is for; empty: there is none."""
    told: _Window | None = None
    """The one of them that the alarm names."""


class ParityMonitor:
    """Counts, and raises the alarm (implements predictions.Outcomes)."""

    def __init__(self, reporter: Reporter, *, stale: Callable[[EndpointId], None] = lambda _: None) -> None:
        """`stale` is called when an endpoint does not hold what it is taken to hold: what is known of it should be learnt anew."""
        self._reporter = reporter
        self._stale = stale
        self._models: dict[str, _Model] = {}
        self._counters = CountedHits()
        self._unusable: dict[EndpointId, str] = {}
        """Why the latest event that could not be used could not."""
        self._stale_told: dict[EndpointId, bool] = {}
        """Endpoints called stale of which nothing was found since; whether they were forgotten since."""

    # --- witnesses -----------------------------------------------------------------------------------------------
    def settled(self, settled: Settled) -> None:
        """A prediction came out."""
        endpoint, verdict, divergence = settled.endpoint, settled.verdict, settled.divergence
        self._reporter.parity_settled(endpoint, settled.model, verdict.value)
        if verdict is not Verdict.UNSEEN:
            self._unusable.pop(endpoint, None)
            where = (None, 0) if divergence is None else (divergence.cause, divergence.token)
            self._found(settled.model, _BLOCKS, _Finding(endpoint, *where))
            self._found(settled.model, _SILENCE, _Finding(endpoint, at=settled.at), only_endpoint=True)
        elif settled.silent:
            self._found(settled.model, _SILENCE, _Finding(endpoint, self._why_silent(endpoint), at=settled.at), only_endpoint=True)

    def answered(self, answered: Answered) -> None:
        """A request was answered, perhaps with a word on its tokens."""
        self._counters.answered(answered)
        said, endpoint, model = answered.said, answered.endpoint, answered.model
        if said is None:
            return
        if said.prompt_tokens is not None:
            more = said.prompt_tokens - answered.prompt_tokens
            self._reporter.prompt_tokens_compared(endpoint, model, more)
            cause = None if not more else Cause.BOS if more in (1, -1) else Cause.TEMPLATE
            self._found(model, _COUNTS, _Finding(endpoint, cause, more))
        if said.cached_tokens is not None and answered.foreseen:
            found = said.cached_tokens >= answered.foreseen * FOUND_SHARE
            self._found(model, _HITS, _Finding(endpoint, None if found else Cause.INDEX))

    def scraped(self, endpoint: EndpointId, metrics: EndpointMetrics) -> None:
        """What an engine's metrics say now."""
        counted = self._counters.scraped(endpoint, metrics)
        if counted is not None:
            self._reporter.hits_counted(endpoint, counted.expected, counted.found)
            found = counted.found >= counted.expected * FOUND_SHARE
            self._found(counted.model, _COUNTED, _Finding(endpoint, None if found else Cause.INDEX), only_endpoint=True)

    def unusable(self, endpoint: EndpointId, reason: str) -> None:
        """What the endpoint published could not be read, or not be counted."""
        self._unusable[endpoint] = reason

    def forgotten(self, endpoint: EndpointId) -> None:
        """The endpoint restarted, cleared its cache or is gone: what was found does not count against what it is now.

        So an alarm that rested on it ends, or names what is left. Not where it was forgotten because of the alarm: nothing is mended by that.
        """
        self._counters.forget(endpoint)
        self._unusable.pop(endpoint, None)
        by_ourselves = endpoint in self._stale_told
        if by_ourselves:
            self._stale_told[endpoint] = True
        # A copy: what is told of here may make the index forget more, and settle predictions for models not seen yet.
        for name, model in tuple(self._models.items()):
            windows = model.endpoints.get(endpoint)
            if not windows:
                continue
            if any(window.fits for window in windows.values() if window.kind in (_BLOCKS, _COUNTS)):
                model.fitted.add(endpoint)
            concerned = (*windows.values(), *model.windows.values())
            for window in concerned:
                window.forget(endpoint)
            if not by_ourselves:
                self._mended(name, model, concerned, seen=False)

    def removed(self, endpoint: EndpointId) -> None:
        """The endpoint is gone for good."""
        self._stale_told.pop(endpoint, None)
        self.forgotten(endpoint)
        for model in self._models.values():
            model.fitted.discard(endpoint)
            model.endpoints.pop(endpoint, None)

    def _why_silent(self, endpoint: EndpointId) -> Cause:
        reason = self._unusable.get(endpoint)
        if reason is None:
            return Cause.SILENT
        if reason in _OF_THE_PAST:
            return Cause.INDEX
        return Cause.BLOCK_SIZE if reason in _OF_SHAPE else Cause.VERSION

    # --- the alarm -----------------------------------------------------------------------------------------------
    def _found(self, name: str, kind: _Kind, finding: _Finding, *, only_endpoint: bool = False) -> None:
        model = self._models.get(name)
        if model is None:
            if len(self._models) >= MAX_MODELS:
                return
            model = self._models[name] = _Model()
        if self._stale_told.get(finding.endpoint):
            del self._stale_told[finding.endpoint]
        windows = model.endpoints.get(finding.endpoint)
        if windows is None and len(model.endpoints) < MAX_ENDPOINTS:
            windows = model.endpoints[finding.endpoint] = {}
        concerned = []
        for these in (windows, None if only_endpoint else model.windows):
            if these is not None:
                window = these.get(kind)
                if window is None:
                    window = these[kind] = _Window(kind)
                window.add(finding)
                concerned.append(window)
        if finding.cause is None:
            self._mended(name, model, concerned, seen=True)
            return
        for window in concerned:
            if window.is_lost:
                model.lost[window] = None
                if model.told is None:
                    self._tell(name, model, window)

    def _mended(self, name: str, model: _Model, windows: Iterable[_Window], *, seen: bool) -> None:
        """These may be right again: the alarm ends, or says what it is for now. `seen`: by findings, not for want of them."""
        for window in windows:
            if window.share < RESTORED_SHARE:
                model.lost.pop(window, None)
        if model.told is None or model.told in model.lost:
            return
        if not model.lost:
            model.told = None
            (self._reporter.parity_restored if seen else self._reporter.parity_forgotten)(name)
            return
        # All endpoints together say more than one of them; what was forgotten because of the alarm has nothing to say yet.
        telling = [window for window in (*model.windows.values(), *model.lost) if window in model.lost and window.wrong]
        if telling:
            self._tell(name, model, telling[0])

    def _tell(self, name: str, model: _Model, window: _Window) -> None:
        model.told = window
        wrong = [finding for finding in window.findings if finding.cause is not None]
        endpoints = tuple(dict.fromkeys(finding.endpoint for finding in wrong))
        cause, detail = self._cause(model, window.kind, wrong)
        requests = window.kind.requests
        self._reporter.parity_lost(
            ParityLoss(name, endpoints, cause.value, window.kind.seen, detail, requests * len(wrong), requests * len(window.findings))
        )
        if cause is Cause.INDEX and window.kind is not _SILENCE:
            for endpoint in endpoints:
                self._stale_told[endpoint] = False
                self._stale(endpoint)

    def _cause(self, model: _Model, kind: _Kind, wrong: list[_Finding]) -> tuple[Cause, str]:
        """The most frequent one, and the same for a human with the place it is seen at; a precise one before a vague one."""
        causes = Counter(finding.cause for finding in wrong if finding.cause is not None)
        if len(causes) > 1:
            del causes[Cause.EARLIER]
        cause = causes.most_common(1)[0][0]
        places = [finding.place for finding in wrong if finding.cause is cause]
        text = _TEXTS[cause]
        if kind is _COUNTS:
            more = Counter(places).most_common(1)[0][0]
            text += f": engines count {abs(more)} {'more' if more > 0 else 'less'}"
        elif cause is Cause.TEMPLATE:
            text += f": prompts differ from token {min(places)} on"
        elif kind is _SILENCE and cause is Cause.INDEX:
            text = "their events go on from blocks that were stored before we listened: is there a replay socket?"
        elif kind is _SILENCE and cause is not Cause.SILENT:
            reasons = {self._unusable[finding.endpoint] for finding in wrong if finding.endpoint in self._unusable}
            text += f": their events cannot be used ({', '.join(sorted(reasons)).replace('_', ' ')})"
        if cause in _OF_VERSIONS:
            here = {finding.endpoint for finding in wrong}
            if here <= model.fitted:
                return Cause.VERSION, f"engine version or flags, which changed with a restart there: {text}"
            if _fits_elsewhere(model, kind, here):
                return Cause.VERSION, f"engine version or flags, which differ from those of the other endpoints: {text}"
        return cause, text


def _fits_elsewhere(model: _Model, kind: _Kind, here: Iterable[EndpointId]) -> bool:
    """Whether endpoints where things are wrong are not those where they fit, and there are such."""
    fitting = {endpoint for endpoint, windows in model.endpoints.items() if kind in windows and windows[kind].fits}
    return bool(fitting) and fitting.isdisjoint(here)
