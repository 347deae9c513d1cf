"""Whether what we make of requests is what the engines make of them: an alarm when it is not (nobody else would notice).

Wrong tokens break nothing one could see: requests are answered, only never where their prefix is cached. So each settled
prediction is counted by pod and model, and where most of the recent ones of a model were contradicted, one alarm names the pods and the
likely cause; it ends when most are confirmed again. Pure; told by the index's predictions, on the event loop.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from epp.domain import EndpointId
from epp.kvcache.predictions import Cause, Settled, Verdict
from epp.reporter import Reporter

# Predictions of a model that are looked back at, and how many of them must be contradicted, and which share, for an alarm.
WINDOW: Final = 40
ALARM_AT: Final = 8
ALARM_SHARE: Final = 0.5
# Models with a window of their own; clients choose names, but only those of requests with tokens get here.
MAX_MODELS: Final = 1_000


@dataclass(slots=True)
class _Model:
    recent: deque[Settled] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Those that were confirmed or contradicted."""
    alarmed: bool = False


class ParityMonitor:
    """Counts, and raises the alarm."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._models: dict[str, _Model] = {}

    def settled(self, settled: Settled) -> None:
        """A prediction came out."""
        self._reporter.parity_settled(settled.endpoint, settled.model, settled.verdict.value)
        if settled.verdict is Verdict.UNSEEN:
            return
        model = self._models.get(settled.model)
        if model is None:
            if len(self._models) >= MAX_MODELS:
                return
            model = self._models[settled.model] = _Model()
        model.recent.append(settled)
        wrong = [one for one in model.recent if one.divergence is not None]
        share = len(wrong) / len(model.recent)
        if not model.alarmed and len(wrong) >= ALARM_AT and share >= ALARM_SHARE:
            model.alarmed = True
            self._reporter.parity_lost(settled.model, _pods(wrong), _cause(wrong), len(wrong), len(model.recent))
        elif model.alarmed and share < ALARM_SHARE / 2:
            model.alarmed = False
            self._reporter.parity_restored(settled.model)


def _pods(wrong: list[Settled]) -> tuple[EndpointId, ...]:
    return tuple(dict.fromkeys(one.endpoint for one in wrong))


def _cause(wrong: list[Settled]) -> str:
    """The most frequent one, with the place it is seen at; a precise one before a vague one."""
    causes = Counter(one.divergence.cause for one in wrong if one.divergence is not None)
    if len(causes) > 1:
        del causes[Cause.EARLIER]
    cause = causes.most_common(1)[0][0]
    if cause is not Cause.TEMPLATE:
        return str(cause.value)
    token = min(one.divergence.token for one in wrong if one.divergence is not None and one.divergence.cause is cause)
    return f"{cause.value}: prompts differ from token {token} on"
