"""Does epp know what real engines hold? Its predictions of a mode against vLLM's own counters. Pure.

For each engine: the hit tokens epp foresaw for the requests that engine served, beside the growth of its counter
`prefix_cache_hits`. One block a request may lie between them: what an engine does not reuse of a prompt it holds completely,
or what changed between a decision and the prefill. More means that epp does not know what it says it knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from epp.demo.records import Choice, ModeRun
from epp.demo.vllm.counters import Counters


@dataclass(frozen=True, slots=True)
class EngineVerdict:
    """One engine in one mode."""

    engine: str
    requests: int
    """Answers the client had from it."""
    growth: Counters
    """What vLLM counted in that time."""
    predicted_tokens: int | None
    """Hit tokens epp foresaw for these requests; None in a mode without predictions."""
    block_size: int

    @property
    def apart_tokens(self) -> int:
        """How far the sums are apart; 0 without predictions."""
        return 0 if self.predicted_tokens is None else abs(self.growth.hit_tokens - self.predicted_tokens)

    @property
    def apart_blocks_per_request(self) -> float:
        """The same in the unit of the limit, which is 1."""
        return self.apart_tokens / self.block_size / self.requests if self.requests else float(self.apart_tokens > 0)

    @property
    def agrees(self) -> bool:
        """Within one block a request."""
        return self.apart_tokens <= self.block_size * self.requests


def judge(run: ModeRun, growths: Mapping[str, Counters]) -> list[EngineVerdict]:
    """One verdict an engine, in the order of the run's endpoints; `growths` are by engine."""
    verdicts = []
    for engine in run.pods:
        served = [request for request in run.requests if request.pod == engine and request.error is None]
        predicted = sum(_foreseen(run.choices.get(request.request_id), engine) for request in served) if run.mode.has_picker else None
        verdicts.append(EngineVerdict(engine, len(served), growths[engine], predicted, run.block_size))
    return verdicts


def _foreseen(choice: Choice | None, engine: str) -> int:
    """What epp saw of the prompt on the engine that served, whichever it had chosen."""
    if choice is None:
        return 0
    return next((candidate.matched_tokens for candidate in choice.candidates if candidate.pod == engine), 0)


def complaints(run: ModeRun, verdicts: list[EngineVerdict]) -> list[str]:
    """A sentence for each thing that should not be; none where all is well."""
    found = []
    if failed := [request for request in run.requests if request.error is not None]:
        found.append(f"{len(failed)} requests had no whole answer; the first, {failed[0].request_id}: {failed[0].error}")
    for verdict in verdicts:
        counted = verdict.growth.requests
        # A request that failed for the client may have ended well for the engine, or the other way round.
        if counted != verdict.requests and not failed:
            found.append(f"{verdict.engine} counted {counted} requests, the client had {verdict.requests} answers from it")
        if not verdict.agrees:
            found.append(
                f"{verdict.engine}: vLLM counted {verdict.growth.hit_tokens:,} hit tokens, epp foresaw {verdict.predicted_tokens:,}; "
                f"{verdict.apart_tokens:,} lie between them, and {verdict.block_size} for each of {verdict.requests} requests are allowed"
            )
    if run.mode.has_picker:
        found.extend(_vacuous(run, verdicts))
    return found


def _vacuous(run: ModeRun, verdicts: list[EngineVerdict]) -> list[str]:
    """Sums of nothing agree, too."""
    answered = [request for request in run.requests if request.error is None]
    blind = [request for request in answered if (choice := run.choices.get(request.request_id)) is None or not choice.total_blocks]
    found = [f"epp foresaw nothing for {len(blind)} requests, such as {blind[0].request_id}: it had no tokens"] if blind else []
    found.extend(
        f"{verdict.engine} had no hit at all, so nothing was compared there" for verdict in verdicts if not verdict.growth.hit_tokens
    )
    return found
