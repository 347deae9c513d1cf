"""From a run's records to the figures people compare. Pure; used by the table, the page and results.json.

Rates are over tokens, not over requests: a hit of 3,000 tokens saves a hundred times what one of 30 does. Requests without
a whole answer are counted as failed and left out of everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.demo.records import ModeRun, Played


@dataclass(frozen=True, slots=True)
class PodLoad:
    """What one pod was given."""

    pod: str
    requests: int
    prompt_tokens: int
    computed_tokens: int
    """Prompt tokens it had to compute because they were not in its cache."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """How often the picker knew the hit beforehand."""

    requests: int
    equal: int
    explained: int
    """Of the others, those with a known cause."""

    @property
    def share(self) -> float:
        """Requests whose hit was the predicted one, 0..1."""
        return self.equal / self.requests if self.requests else 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One mode in numbers."""

    requests: int
    failed: int
    duration_s: float
    prompt_tokens: int
    hit_tokens: int
    bound_tokens: int
    ttft_s: tuple[float, ...]
    """Of each request, ascending."""
    pods: tuple[PodLoad, ...]
    prediction: Prediction | None
    """None without a picker that knows prefixes."""
    stored: Mapping[str, int]
    """As in ModeRun."""

    @property
    def stored_as_expected(self) -> float | None:
        """Share of the requests whose blocks were seen, or contradicted, that filled those which were expected; None: nobody looked."""
        told = self.stored.get("confirmed", 0) + self.stored.get("contradicted", 0)
        return self.stored.get("confirmed", 0) / told if told else None

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that came from a cache."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def bound_rate(self) -> float:
        """The same with one infinite cache."""
        return self.bound_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def share_of_bound(self) -> float:
        """Hits in terms of what one infinite cache would have had."""
        return self.hit_tokens / self.bound_tokens if self.bound_tokens else 1.0

    @property
    def busiest_to_mean(self) -> float:
        """Requests of the busiest pod over the mean of all pods."""
        counts = [load.requests for load in self.pods]
        return max(counts) * len(counts) / sum(counts) if sum(counts) else 1.0

    def ttft(self, share: float) -> float:
        """The quantile, in seconds."""
        return quantile(self.ttft_s, share)


def quantile(ascending: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks, as numpy's and Excel's default; NaN without values."""
    if not ascending:
        return float("nan")
    position = share * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (position - below)


def measure(run: ModeRun) -> Figures:
    """The figures of one mode."""
    answered = [request for request in run.requests if request.error is None]
    bounds = dict(zip((request.request_id for request in run.requests), run.bound_tokens, strict=True))
    return Figures(
        requests=len(run.requests),
        failed=len(run.requests) - len(answered),
        duration_s=run.duration_s,
        prompt_tokens=sum(request.prompt_tokens for request in answered),
        hit_tokens=sum(request.cached_tokens for request in answered),
        bound_tokens=sum(bounds[request.request_id] for request in answered),
        ttft_s=tuple(sorted(request.ttft_s for request in answered)),
        pods=tuple(_load(pod, [request for request in answered if request.pod == pod]) for pod in run.pods),
        prediction=_prediction(run, answered),
        stored=run.stored,
    )


def _load(pod: str, requests: Sequence[Played]) -> PodLoad:
    return PodLoad(
        pod=pod,
        requests=len(requests),
        prompt_tokens=sum(request.prompt_tokens for request in requests),
        computed_tokens=sum(request.prompt_tokens - request.cached_tokens for request in requests),
    )


def _prediction(run: ModeRun, answered: Sequence[Played]) -> Prediction | None:
    predicted = [request for request in answered if (choice := run.choices.get(request.request_id)) and choice.total_blocks]
    if not predicted:
        return None
    equal = sum(run.choices[request.request_id].predicted_tokens == request.cached_tokens for request in predicted)
    return Prediction(len(predicted), equal, sum(explanation.by != () for explanation in run.explanations))
