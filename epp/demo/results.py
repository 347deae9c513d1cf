"""results.json: all figures and every request of a run, for tests and for people who want to compute something else. Pure.

Times of requests are seconds since the mode's first request was sent; tokens and blocks are counts. Fields may be added.
"""

from collections.abc import Mapping, Sequence

import msgspec

from epp.demo.figures import Figures
from epp.demo.records import Choice, Mode, ModeRun
from epp.demo.samples import Sample
from epp.demo.workload import Workload


def encode(
    workload: Workload,
    runs: Mapping[Mode, ModeRun],
    figures: Mapping[Mode, Figures],
    samples: Sequence[Sample],
    facts: Mapping[str, object],
) -> bytes:
    """The file's bytes. `facts` are the settings."""
    return formatted(records(workload, runs, figures, samples, facts))


def formatted(result: Mapping[str, object]) -> bytes:
    """JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def records(
    workload: Workload,
    runs: Mapping[Mode, ModeRun],
    figures: Mapping[Mode, Figures],
    samples: Sequence[Sample],
    facts: Mapping[str, object],
) -> dict[str, object]:
    """What the file holds."""
    return {
        "seed": workload.seed,
        "facts": facts,
        "workload": {"tenants": len(workload.tenants), "conversations": len(workload.conversations), "requests": workload.requests},
        "modes": {mode.value: _mode(run, figures[mode]) for mode, run in runs.items()},
        "samples": [{"title": sample.title, "request_id": sample.request.request_id, "why": sample.why} for sample in samples],
    }


def _mode(run: ModeRun, figures: Figures) -> dict[str, object]:
    prediction = figures.prediction
    return {
        "figures": {
            "requests": figures.requests,
            "failed": figures.failed,
            "duration_s": figures.duration_s,
            "prompt_tokens": figures.prompt_tokens,
            "hit_tokens": figures.hit_tokens,
            "bound_tokens": figures.bound_tokens,
            "hit_rate": figures.hit_rate,
            "bound_rate": figures.bound_rate,
            "share_of_bound": figures.share_of_bound,
            "ttft_p50_s": figures.ttft(0.5),
            "ttft_p90_s": figures.ttft(0.9),
            "busiest_to_mean": figures.busiest_to_mean,
            "stored": dict(figures.stored),
            "pods": figures.pods,
        },
        "prediction": prediction
        and {"requests": prediction.requests, "equal": prediction.equal, "share": prediction.share, "explained": prediction.explained},
        "differences": run.explanations,
        "requests": _requests(run),
    }


def _requests(run: ModeRun) -> list[dict[str, object]]:
    start = run.requests[0].sent if run.requests else 0.0
    records: list[dict[str, object]] = []
    for request, bound in zip(run.requests, run.bound_tokens, strict=True):
        choice = run.choices.get(request.request_id)
        records.append(
            {
                "request_id": request.request_id,
                "tenant": request.tenant,
                "conversation": request.conversation,
                "turn": request.turn,
                "sent_s": request.sent - start,
                "ttft_s": None if request.first_token is None else request.ttft_s,
                "duration_s": request.ended - request.sent,
                "status": request.status,
                "error": request.error,
                "pod": request.pod,
                "prompt_tokens": request.prompt_tokens,
                "answer_tokens": request.answer_tokens,
                "actual_hit_tokens": request.cached_tokens,
                "bound_hit_tokens": bound,
                "predicted_hit_tokens": choice.predicted_tokens if choice is not None and choice.total_blocks else None,
                "decision": choice and _decision(choice, start),
            }
        )
    return records


def _decision(choice: Choice, start: float) -> dict[str, object]:
    return {
        "decided_s": choice.decided - start,
        "pod": choice.pod,
        "total_blocks": choice.total_blocks,
        "weights": choice.weights,
        "candidates": choice.candidates,
        "duration_s": choice.duration_s,
    }
