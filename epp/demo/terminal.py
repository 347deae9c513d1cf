"""The end of the demo on a terminal: a table, bars, a few sample requests. Pure: returns text."""

from collections.abc import Mapping, Sequence

from epp.demo.figures import Figures
from epp.demo.progress import bar
from epp.demo.records import Mode
from epp.demo.samples import Sample, contributions

LABELS: Mapping[Mode, str] = {Mode.PRECISE: "precise", Mode.LOAD: "load only", Mode.ROUND_ROBIN: "round robin"}

SHOWN_FAILURES = 5

_BAR = 40

_KNEW = (
    "Foreseen: of so many requests epp said beforehand, to the token, what its pod would find in its cache.\n"
    "Stored as expected: for so many the pod's KV events then showed the very blocks epp had computed from the prompt.\n"
)


def render(figures: Mapping[Mode, Figures], samples: Sequence[Sample]) -> str:
    """Everything, ending with a newline."""
    parts = [table(figures), *([_KNEW] if Mode.PRECISE in figures else []), bars(figures)]
    if samples:
        parts.append("Some requests of the precise mode (blocks of the prompt each pod holds, and its score):\n")
        parts.extend(sample_text(sample) for sample in samples)
    return "\n".join(parts)


def table(figures: Mapping[Mode, Figures]) -> str:
    """One column a mode."""
    rows: list[tuple[str, list[str]]] = [
        ("", [LABELS[mode] for mode in figures]),
        ("prefix hit rate", [_percent(mode.hit_rate) for mode in figures.values()]),
        ("  share of one infinite cache's", [_percent(mode.share_of_bound) for mode in figures.values()]),
        ("time to first token, median", [_seconds(mode.ttft(0.5)) for mode in figures.values()]),
        ("time to first token, 90 %", [_seconds(mode.ttft(0.9)) for mode in figures.values()]),
        ("requests", [_requests(mode) for mode in figures.values()]),
        ("  each pod", ["/".join(str(load.requests) for load in mode.pods) for mode in figures.values()]),
        ("  busiest pod over the mean", [f"{mode.busiest_to_mean:.2f}" for mode in figures.values()]),
        ("prompt tokens computed", [f"{mode.prompt_tokens - mode.hit_tokens:,}" for mode in figures.values()]),
        ("hit foreseen to the token", [_foreseen(mode) for mode in figures.values()]),
        ("prompts stored as expected", [_or_dash(mode.stored_as_expected) for mode in figures.values()]),
        ("played in", [_seconds(mode.duration_s) for mode in figures.values()]),
    ]
    first = max(len(name) for name, _ in rows)
    width = max(len(cell) for _, cells in rows for cell in cells)
    return "\n".join(f"{name:<{first}}" + "".join(f"   {cell:>{width}}" for cell in cells) for name, cells in rows) + "\n"


def bars(figures: Mapping[Mode, Figures]) -> str:
    """Hit rate against its bound, TTFT, and load of each pod."""
    lines = ["Prefix hit rate (┃ is what one infinite cache would have)"]
    lines += [_line(mode, _marked(one.hit_rate, one.bound_rate), _percent(one.hit_rate)) for mode, one in figures.items()]
    for name, share in (("median", 0.5), ("90 % of requests are faster", 0.9)):
        slowest = max(one.ttft(share) for one in figures.values()) or 1.0
        lines += ["", f"Time to first token, {name} (shorter is better)"]
        lines += [_line(mode, bar(one.ttft(share) / slowest, _BAR), _seconds(one.ttft(share))) for mode, one in figures.items()]
    most = max(load.requests for one in figures.values() for load in one.pods) or 1
    lines += ["", "Requests of each pod"]
    for mode, one in figures.items():
        cells = (f"{load.pod} {bar(load.requests / most, 8)} {load.requests:<4}" for load in one.pods)
        lines.append(f"  {LABELS[mode]:<12} " + " ".join(cells))
    return "\n".join(lines) + "\n"


def sample_text(sample: Sample) -> str:
    """One request: every pod, what it holds, its score and what that is made of."""
    choice = sample.choice
    lines = [f"{sample.title}: {sample.request.request_id}"]
    for candidate in choice.candidates:
        mark = "▶" if candidate.pod == choice.pod else " "
        held = bar(candidate.matched_blocks / choice.total_blocks, 12)
        total = "removed" if candidate.total is None else f"{candidate.total:.2f}"
        made_of = " + ".join(f"{_short(scorer)} {points:.2f}" for scorer, points in contributions(choice, candidate))
        lines.append(f"  {mark} {candidate.pod} {held} {candidate.matched_blocks:>3} of {choice.total_blocks:<3}  {total:>5} = {made_of}")
    lines.append(f"    {sample.why}")
    return "\n".join(lines) + "\n"


def failures(failed: Sequence[tuple[str, str]]) -> str:
    """What went wrong, for standard error: (request id, reason) of each failed request."""
    lines = [
        f"{len(failed)} requests had no whole answer:",
        *(f"    {request_id}: {reason}" for request_id, reason in failed[:SHOWN_FAILURES]),
    ]
    if len(failed) > SHOWN_FAILURES:
        lines.append(f"    and {len(failed) - SHOWN_FAILURES} more, all in results.json")
    return "\n".join(lines)


def _line(mode: Mode, drawing: str, value: str) -> str:
    return f"  {LABELS[mode]:<12} {drawing} {value:>7}"


def _marked(share: float, bound: float) -> str:
    drawing = bar(share, _BAR)
    position = min(_BAR - 1, round(bound * _BAR))
    return drawing[:position] + "┃" + drawing[position + 1 :]


def _short(scorer: str) -> str:
    return scorer.removesuffix("-scorer")


def _requests(figures: Figures) -> str:
    return f"{figures.requests}" + (f" ({figures.failed} failed)" if figures.failed else "")


def _foreseen(figures: Figures) -> str:
    return "-" if figures.prediction is None else _percent(figures.prediction.share)


def _or_dash(share: float | None) -> str:
    return "-" if share is None else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
