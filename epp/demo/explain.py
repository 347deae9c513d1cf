"""Why a predicted hit was not the hit the endpoint reported: which request or eviction came between decision and prefill.

The evidence is what the pods announced (their KV events, read back by `kv_history`) and when each request was decided and
got its first token. Only two innocent causes exist on a healthy fleet: something changed after the decision, or news of it
was on its way while the decision was taken. Anything else stays UNEXPLAINED, which the demo's test does not forgive. Pure.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from epp.demo.records import Announcement, Cause, Explanation

# An event this young may not have reached the picker when it decided: engine step, ZMQ, one turn of a busy event loop.
NEWS_DELAY_S = 0.25
# A sentence names no more requests than this; `by` names all.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of one request after the run. Times in Unix seconds."""

    id: str
    chosen: str
    """Pod the picker chose."""
    pod: str
    """Pod that answered."""
    decided: float
    first_token: float
    ended: float
    blocks: Sequence[int]
    """Names of the full blocks of prompt and answer, in order."""
    predicted_tokens: int
    actual_tokens: int


@dataclass(slots=True)
class _PodHistory:
    """When each block came and went, in order of time."""

    stored: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    gone: dict[int, list[tuple[float, tuple[int, ...]]]] = field(default_factory=lambda: defaultdict(list))
    """Each time the last copy was removed: when, and what the same engine step stored instead."""
    copies: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, announcement: Announcement) -> None:
        for block in announcement.removed:
            self.copies[block] -= 1
            if self.copies[block] == 0:
                self.gone[block].append((announcement.time, announcement.stored))
        for block in announcement.stored:
            self.copies[block] += 1
            self.stored[block].append(announcement.time)


class Explainer:
    """Explains the requests of one run."""

    def __init__(self, requests: Iterable[Request], announcements: Iterable[Announcement], block_size: int) -> None:
        """`announcements` in the order of each pod."""
        self._block_size = block_size
        self._by_pod: dict[str, list[Request]] = defaultdict(list)
        for request in requests:
            self._by_pod[request.pod].append(request)
        self._history: Mapping[str, _PodHistory] = defaultdict(_PodHistory)
        for announcement in announcements:
            self._history[announcement.pod].add(announcement)

    def explain(self, request: Request) -> Explanation | None:
        """None where prediction and truth are equal."""
        if request.predicted_tokens == request.actual_tokens:
            return None
        if request.chosen != request.pod:
            return _explanation(request, Cause.SERVED_ELSEWHERE, (), f"chosen was {request.chosen}, {request.pod} answered")
        if request.actual_tokens < request.predicted_tokens:
            return self._lost(request)
        return self._gained(request)

    def _lost(self, request: Request) -> Explanation:
        """Fewer hits than predicted: the first block that was missing is the witness."""
        position = request.actual_tokens // self._block_size
        block = request.blocks[position]
        evictions = self._history[request.pod].gone[block]
        last = bisect_right(evictions, request.first_token, key=lambda eviction: eviction[0]) - 1
        if last >= 0 and evictions[last][0] >= request.decided - NEWS_DELAY_S:
            time, stored_instead = evictions[last]
            by = self._owners(request, time, stored_instead)
            if by:
                when = _relative(time - request.decided)
                return _explanation(request, Cause.EVICTED, by, f"{_named(by)} needed room, so block {position} was evicted {when}")
        by = tuple(
            other.id
            for other in self._by_pod[request.pod]
            if other.id != request.id and block in other.blocks and other.decided <= request.decided <= other.first_token
        )
        if by:
            return _explanation(
                request, Cause.STILL_COMPUTING, by, f"{_named(by)} was about to compute block {position}, so it was counted"
            )
        return _explanation(request, Cause.UNEXPLAINED, (), f"block {position} was not there, and nothing tells why it was expected")

    def _gained(self, request: Request) -> Explanation:
        """More hits than predicted: the first block beyond the prediction is the witness."""
        position = request.predicted_tokens // self._block_size
        block = request.blocks[position]
        times = self._history[request.pod].stored[block]
        last = bisect_right(times, request.first_token) - 1
        if last >= 0 and times[last] >= request.decided - NEWS_DELAY_S:
            time = times[last]
            by = self._owners(request, time, (block,))
            if by:
                when = _relative(time - request.decided)
                return _explanation(request, Cause.COMPUTED_MEANWHILE, by, f"{_named(by)} stored block {position} {when}")
        return _explanation(request, Cause.UNEXPLAINED, (), f"block {position} was there, and nothing tells why it was not expected")

    def _owners(self, request: Request, time: float, blocks: tuple[int, ...]) -> tuple[str, ...]:
        """Requests other than this one that were open on its pod at that time and hold one of the blocks; all open ones where none does.

        A block that answers fill is stored a step after its room was taken, so the step may name nobody.
        """
        running = [
            other
            for other in self._by_pod[request.pod]
            if other.id != request.id and other.decided <= time <= max(other.ended, other.first_token) + NEWS_DELAY_S
        ]
        owners = tuple(other.id for other in running if any(block in other.blocks for block in blocks))
        return owners or tuple(other.id for other in running)


def _explanation(request: Request, cause: Cause, by: tuple[str, ...], sentence: str) -> Explanation:
    return Explanation(request.id, request.pod, request.predicted_tokens, request.actual_tokens, cause, by, sentence)


def _relative(seconds: float) -> str:
    return f"{abs(seconds) * 1000:.0f} ms {'after' if seconds >= 0 else 'before'} the decision"


def _named(ids: Sequence[str]) -> str:
    if len(ids) > NAMED:
        return f"one of {len(ids)} requests that ran there, {ids[0]} among them,"
    return " or ".join(ids)
