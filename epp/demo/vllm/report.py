"""What `epp demo-vllm` says at its end: the comparison of the modes, and epp's predictions beside vLLM's counters. Pure: returns text."""

from collections.abc import Mapping, Sequence

from epp.demo import terminal
from epp.demo.figures import Figures
from epp.demo.records import Explanation, Mode
from epp.demo.vllm.verdict import EngineVerdict

SHOWN_DIFFERENCES = 8


def render(figures: Mapping[Mode, Figures], verdicts: Sequence[EngineVerdict], explanations: Sequence[Explanation]) -> str:
    """Everything, ending with a newline; `verdicts` and `explanations` are of the precise mode."""
    parts = [terminal.table(figures), comparison(verdicts)]
    if (prediction := figures[Mode.PRECISE].prediction) is not None:
        parts.append(differences(prediction.requests, explanations))
    return "\n".join(parts)


def comparison(verdicts: Sequence[EngineVerdict]) -> str:
    """One line an engine: what epp foresaw, what vLLM counted."""
    rows = [("engine", "requests", "prompt tokens", "hits epp foresaw", "hits vLLM counted", "apart", "blocks a request")]
    rows += [
        (
            verdict.engine,
            str(verdict.requests),
            f"{verdict.growth.prompt_tokens:,}",
            f"{verdict.predicted_tokens or 0:,}",
            f"{verdict.growth.hit_tokens:,}",
            f"{verdict.apart_tokens:,}",
            f"{verdict.apart_blocks_per_request:.3f}",
        )
        for verdict in verdicts
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["Precise: what epp foresaw, and what each engine counted by itself (vllm:prefix_cache_hits, in tokens)"]
    for name, *cells in rows:
        lines.append("  " + name.ljust(widths[0]) + "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)))
    block_size = verdicts[0].block_size
    good = all(verdict.agrees for verdict in verdicts)
    lines.append(f"  At most one block ({block_size} tokens) a request may lie between them: {'it does' if good else 'IT IS MORE'}.")
    return "\n".join(lines) + "\n"


def differences(requests: int, explanations: Sequence[Explanation]) -> str:
    """The requests whose own usage told another hit than foreseen, and why."""
    if not explanations:
        return f"Each of {requests} requests reported exactly the hit epp had foreseen, to the token.\n"
    lines = [f"{len(explanations)} of {requests} requests reported another hit than epp had foreseen:"]
    lines += [
        f"  {one.request_id} on {one.pod}: foreseen {one.predicted_tokens:,}, reported {one.actual_tokens:,}; {one.cause.value}: {one.sentence}"
        for one in explanations[:SHOWN_DIFFERENCES]
    ]
    if len(explanations) > SHOWN_DIFFERENCES:
        lines.append(f"  and {len(explanations) - SHOWN_DIFFERENCES} more, all in results.json")
    return "\n".join(lines) + "\n"
