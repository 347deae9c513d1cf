"""Builders of the demo's records."""

from collections.abc import Sequence

from epp.demo.records import Candidate, Choice, Mode, ModeRun, Played


def played(request_id: str, *, pod: str = "pod-0", sent: float = 0.0, ttft: float = 0.1, prompt: int = 100, hit: int = 0) -> Played:
    """A request with a whole answer."""
    return Played(
        request_id=request_id,
        tenant="bank",
        conversation="bank-01",
        turn=3,
        messages=[{"role": "user", "content": "Where is <b>my</b> card?"}],
        sent=sent,
        first_token=sent + ttft,
        ended=sent + ttft + 1.0,
        status=200,
        pod=pod,
        prompt_tokens=prompt,
        cached_tokens=hit,
        answer_tokens=10,
        answer="Here",
    )


def choice(request_id: str, pod: str, matched_blocks: Sequence[int], *, active: Sequence[float] = (), total_blocks: int = 10) -> Choice:
    """A decision between pod-0, pod-1, ... that hold so many blocks of 16 tokens; prefix weighs 2, active requests 1."""
    active = active or [0.0] * len(matched_blocks)
    candidates = [
        Candidate(
            pod=f"pod-{i}",
            total=2.0 * blocks / total_blocks + score,
            scores={"prefix-cache-scorer": blocks / total_blocks, "active-request-scorer": score},
            matched_tokens=blocks * 16,
            matched_blocks=blocks,
        )
        for i, (blocks, score) in enumerate(zip(matched_blocks, active, strict=True))
    ]
    weights = {"prefix-cache-scorer": 2.0, "active-request-scorer": 1.0}
    return Choice(request_id, 0.0, pod, weights, candidates, total_blocks, 0.0002)


def mode_run(requests: Sequence[Played], bounds: Sequence[int], choices: Sequence[Choice] = (), mode: Mode = Mode.PRECISE) -> ModeRun:
    """A run on two pods."""
    return ModeRun(mode, ["pod-0", "pod-1"], 16, 4.0, requests, bounds, {choice.request_id: choice for choice in choices})
