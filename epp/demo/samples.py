"""A few requests of the precise mode that show how the picker thinks, each with a sentence that says why. Pure.

Four situations are looked for, in the order a person wants to understand them; one that did not occur is left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from epp.demo.records import Candidate, Choice, ModeRun, Played

# Points; a smaller lead reads as +0.00.
SMALLEST_LEAD = 0.005
# What a lead in a scorer's points means to someone who has never read its name.
ADVANTAGES: Mapping[str, str] = {
    "prefix-cache-scorer": "more of the prompt",
    "queue-scorer": "a shorter queue",
    "kv-cache-utilization-scorer": "a less used KV cache",
    "active-request-scorer": "fewer requests under way",
    "no-hit-lru-scorer": "the longest time without an unknown prompt",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One request worth showing."""

    title: str
    request: Played
    choice: Choice
    why: str


def choose(run: ModeRun) -> list[Sample]:
    """At most one sample a situation."""
    known = [
        (request, choice)
        for request in run.requests
        if request.error is None and (choice := run.choices.get(request.request_id)) is not None and choice.total_blocks
    ]
    samples: list[Sample] = []
    for title, fits in _SITUATIONS:
        fitting = [(request, choice) for request, choice in known if fits(request, choice)]
        if fitting:
            # The middle of the run is when the fleet is as full as it gets.
            request, choice = fitting[len(fitting) // 2]
            samples.append(Sample(title, request, choice, why(choice)))
    return samples


def why(choice: Choice) -> str:
    """The reason in one sentence: what the chosen pod holds, and what else spoke for it."""
    chosen = _chosen(choice)
    others = [candidate for candidate in choice.candidates if candidate is not chosen]
    most = max((candidate.matched_blocks for candidate in others), default=0)
    blocks = choice.total_blocks
    if not chosen.matched_blocks and not most:
        return f"No pod holds any of the prompt's {blocks} blocks, so load decides: {chosen.pod} has {_advantages(choice)}."
    if chosen.matched_blocks > most:
        return f"{chosen.pod} holds {chosen.matched_blocks} of the prompt's {blocks} blocks, the next best {most}."
    if chosen.matched_blocks == most:
        return f"{chosen.pod} holds {most} of the prompt's {blocks} blocks, and so do others; it has {_advantages(choice)}."
    holder = next(candidate for candidate in others if candidate.matched_blocks == most)
    return (
        f"{holder.pod} holds {most} of the prompt's {blocks} blocks and {chosen.pod} only {chosen.matched_blocks}, "
        f"but {chosen.pod} has {_advantages(choice, holder)}: that outweighs it."
    )


def contributions(choice: Choice, candidate: Candidate) -> Iterator[tuple[str, float]]:
    """(scorer, weight x score) of one candidate."""
    for scorer, score in candidate.scores.items():
        yield scorer, choice.weights[scorer] * score


def _chosen(choice: Choice) -> Candidate:
    return next(candidate for candidate in choice.candidates if candidate.pod == choice.pod)


def _advantages(choice: Choice, over: Candidate | None = None) -> str:
    """What the choice has more of than another candidate (the runner-up where none is given), most telling first."""
    chosen = _chosen(choice)
    rivals = [candidate for candidate in choice.candidates if candidate is not chosen and candidate.total is not None]
    rival = over or max(rivals, key=lambda candidate: candidate.total or 0.0, default=chosen)
    theirs = dict(contributions(choice, rival))
    leads = sorted(((points - theirs.get(scorer, 0.0), scorer) for scorer, points in contributions(choice, chosen)), reverse=True)
    words = [f"{ADVANTAGES.get(scorer, scorer)} ({lead:+.2f})" for lead, scorer in leads if lead > SMALLEST_LEAD]
    return ", ".join(words) or "the luck of the draw among equals"


def _goes_on(request: Played, choice: Choice) -> bool:
    """A later turn, on the pod that computed the turns before."""
    chosen = _chosen(choice)
    return request.turn > 2 and chosen.matched_blocks > 0.75 * choice.total_blocks


def _shares_instructions(request: Played, choice: Choice) -> bool:
    """A first message whose tenant's instructions some pods hold."""
    held = [candidate.matched_blocks for candidate in choice.candidates]
    return request.turn == 1 and 0 < _chosen(choice).matched_blocks == max(held) and min(held) == 0


def _nobody_holds(_request: Played, choice: Choice) -> bool:
    return all(candidate.matched_blocks == 0 for candidate in choice.candidates)


def _spills(_request: Played, choice: Choice) -> bool:
    """The best holder was too busy, and that cost something worth mentioning."""
    best = max(candidate.matched_blocks for candidate in choice.candidates)
    return best - _chosen(choice).matched_blocks > choice.total_blocks / 8


_SITUATIONS: Sequence[tuple[str, Callable[[Played, Choice], bool]]] = (
    ("A conversation goes on", _goes_on),
    ("A new conversation of a known tenant", _shares_instructions),
    ("A prompt nobody has seen", _nobody_holds),
    ("The best holder was busy", _spills),
)
