"""The picture of a run: one HTML file that needs nothing else, readable at a glance, in light and dark. Pure: returns text.

The words are for someone who has never met the product: what was sent, what was measured, what the colours mean. Every value
that came from a request is escaped.
"""

import string
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from epp.demo import charts
from epp.demo.figures import Figures
from epp.demo.records import Mode, ModeRun
from epp.demo.samples import Sample, contributions
from epp.demo.workload import Workload

LABELS: Mapping[Mode, str] = {Mode.PRECISE: "precise", Mode.LOAD: "load only", Mode.ROUND_ROBIN: "round robin"}
MEANING: Mapping[Mode, str] = {
    Mode.PRECISE: "epp reads each pod's KV events and tokenizes each prompt: it knows which pod holds how much of it, and weighs that against load",
    Mode.LOAD: "epp looks at queues and KV-cache use only",
    Mode.ROUND_ROBIN: "Envoy alone, in turn, without a picker",
}
SHORT: Mapping[str, str] = {
    "prefix-cache-scorer": "prefix",
    "queue-scorer": "queue",
    "kv-cache-utilization-scorer": "KV use",
    "active-request-scorer": "active",
    "no-hit-lru-scorer": "no hit",
}
SHOWN_EXPLANATIONS = 12
SHOWN_WORDS = 28


def render(
    workload: Workload, runs: Mapping[Mode, ModeRun], figures: Mapping[Mode, Figures], samples: Sequence[Sample], facts: Mapping[str, str]
) -> str:
    """The whole page. `facts` are name and value of the settings, for the foot."""
    body = "\n".join(
        (
            _head(workload, runs, figures),
            _comparison(figures),
            _over_time(runs),
            _loads(figures),
            _samples(samples),
            _predictions(runs, figures),
            _foot(facts),
        )
    )
    template = resources.files("epp.demo").joinpath("page.html").read_text("utf-8")
    return string.Template(template).substitute(body=body)


def _head(workload: Workload, runs: Mapping[Mode, ModeRun], figures: Mapping[Mode, Figures]) -> str:
    pods = len(next(iter(runs.values())).pods)
    ways = "".join(f"<li><b>{LABELS[mode]}</b>: {MEANING[mode]}</li>" for mode in runs)
    return f"""
<h1>The same {workload.requests} chats, routed {_count(len(runs))}</h1>
<p class="headline">{_headline(figures)}</p>
<p>{len(workload.tenants)} tenants, each with its own long instructions, talk to one model on {pods} simulated vLLM pods, in
{len(workload.conversations)} conversations that grow turn by turn. Nearly all of a prompt has been computed before, by <em>one</em> of the pods.
A request that lands there computes only what is new. Real Envoy; the same chats each time, always on fresh, empty pods:</p>
<ul>{ways}</ul>"""


def _headline(figures: Mapping[Mode, Figures]) -> str:
    precise, other = figures.get(Mode.PRECISE), figures.get(Mode.ROUND_ROBIN) or figures.get(Mode.LOAD)
    if precise is None or other is None:
        return "One way of routing was played."
    name = LABELS[Mode.ROUND_ROBIN if Mode.ROUND_ROBIN in figures else Mode.LOAD]
    return (
        f"With precise routing, <b>{precise.hit_rate:.0%}</b> of all prompt tokens were found in a cache instead of {other.hit_rate:.0%} with {name}, "
        f"and nine of ten answers began within <b>{_seconds(precise.ttft(0.9))}</b> instead of {_seconds(other.ttft(0.9))}."
    )


def _comparison(figures: Mapping[Mode, Figures]) -> str:
    def rows(values: Mapping[Mode, tuple[float, str]], marks: Mapping[Mode, float] | None = None) -> list[charts.Bar]:
        most = 1.0 if marks else max(value for value, _ in values.values()) or 1.0
        return [
            charts.Bar(LABELS[mode], f"m-{mode.value}", value / most, text, marks[mode] if marks else None)
            for mode, (value, text) in values.items()
        ]

    hits = rows(
        {mode: (one.hit_rate, f"{one.hit_rate:.0%}") for mode, one in figures.items()},
        {mode: one.bound_rate for mode, one in figures.items()},
    )
    median = rows({mode: (one.ttft(0.5), _seconds(one.ttft(0.5))) for mode, one in figures.items()})
    tenth = rows({mode: (one.ttft(0.9), _seconds(one.ttft(0.9))) for mode, one in figures.items()})
    computed = rows(
        {
            mode: (one.prompt_tokens - one.hit_tokens, f"{(one.prompt_tokens - one.hit_tokens) / 1000:.0f} k")
            for mode, one in figures.items()
        }
    )
    return f"""
<h2>At a glance</h2>
<div class="row two">
<div class="card"><h3>Prefix hit rate: prompt tokens found in a cache</h3>{charts.bars(hits, "Prefix hit rate of each mode")}
<p class="note">Longer is better. <span class="key"></span> is the most anybody could reach: one cache that never forgets, shared by all pods.</p></div>
<div class="card"><h3>Prompt tokens the pods had to compute</h3>{charts.bars(computed, "Computed prompt tokens of each mode")}
<p class="note">Shorter is better: this is the work, in thousands of tokens.</p></div>
<div class="card"><h3>Time to first token, median</h3>{charts.bars(median, "Median time to first token of each mode")}
<p class="note">Shorter is better: half of the requests wait less.</p></div>
<div class="card"><h3>Time to first token, 90th percentile</h3>{charts.bars(tenth, "90th percentile of time to first token of each mode")}
<p class="note">Shorter is better: nine of ten requests wait less.</p></div>
</div>"""


def _over_time(runs: Mapping[Mode, ModeRun]) -> str:
    points = {
        mode: [
            charts.Dot(
                request.sent - run.requests[0].sent, request.ttft_s, f"{request.request_id}: {_seconds(request.ttft_s)} on {request.pod}"
            )
            for request in run.requests
            if request.error is None
        ]
        for mode, run in runs.items()
    }
    x_most = max((dot.x for dots in points.values() for dot in dots), default=1.0) or 1.0
    y_most = max((dot.y for dots in points.values() for dot in dots), default=1.0) or 1.0
    cards = "".join(
        f'<div class="card"><h3>{LABELS[mode]}</h3>{charts.dots(dots, f"m-{mode.value}", x_most, y_most, f"Time to first token over time, {LABELS[mode]}")}</div>'
        for mode, dots in points.items()
    )
    return f"""
<h2>Every request: how long its first token took</h2>
<p class="note">One dot a request; to the right: when it was sent; upwards: seconds until its first token. Same scales in all drawings.</p>
<div class="row three">{cards}</div>"""


def _loads(figures: Mapping[Mode, Figures]) -> str:
    most = max(load.prompt_tokens for one in figures.values() for load in one.pods) * 1.05 or 1.0
    cards = "".join(
        f'<div class="card"><h3>{LABELS[mode]}: the busiest pod has {one.busiest_to_mean:.2f} times the mean</h3>'
        + charts.stacks(
            [
                charts.Stack(load.pod, load.computed_tokens, load.prompt_tokens - load.computed_tokens, f"{load.requests} requests")
                for load in one.pods
            ],
            f"m-{mode.value}",
            most,
            f"Load of each pod, {LABELS[mode]}",
        )
        + "</div>"
        for mode, one in figures.items()
    )
    return f"""
<h2>Load of each pod</h2>
<p class="note">Length: prompt tokens sent to the pod. <span class="swatch"></span> computed, <span class="swatch pale"></span> found in its cache.</p>
<div class="row three">{cards}</div>"""


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    cards = "".join(map(_sample, samples))
    return f"""
<h2>Why there? Some decisions of the precise mode</h2>
<p class="note">A block is 16 tokens of KV cache. Points for: blocks of the prompt it holds (prefix), a short queue, little KV memory in use,
few requests under way (active), and, for prompts nobody knows, not having had the last such one (no hit). The highest sum of points wins.</p>
<div class="row wide">{cards}</div>"""


def _sample(sample: Sample) -> str:
    choice = sample.choice
    scorers = list(choice.weights)
    head = "".join(f'<th class="number">{escape(_short(scorer))}</th>' for scorer in scorers)
    rows = []
    for candidate in choice.candidates:
        share = candidate.matched_blocks / choice.total_blocks
        points = dict(contributions(choice, candidate))
        cells = "".join(f'<td class="number">{points.get(scorer, 0.0):.2f}</td>' for scorer in scorers)
        total = "-" if candidate.total is None else f"{candidate.total:.2f}"
        rows.append(
            f"<tr{' class=chosen' if candidate.pod == choice.pod else ''}><td>{escape(candidate.pod)}</td>"
            f'<td><div class="held"><i style="width:{share:.1%}"></i></div></td><td class="number">{candidate.matched_blocks}</td>'
            f'<td class="number">{total}</td>{cells}</tr>'
        )
    words = str(sample.request.messages[-1]["content"]).split()
    question = " ".join(("...", *words[-SHOWN_WORDS:]) if len(words) > SHOWN_WORDS else words)
    return f"""
<div class="card"><h3>{escape(sample.title)}</h3>
<p class="note"><code>{escape(sample.request.request_id)}</code>: turn {sample.request.turn}, {sample.request.prompt_tokens} tokens, {choice.total_blocks} blocks</p>
<blockquote>{escape(question)}</blockquote>
<div class="scroll"><table class="pods"><tr><th>pod</th><th colspan="2">blocks it holds</th><th class="number">sum</th>{head}</tr>{"".join(rows)}</table></div>
<p class="why">{escape(sample.why)}</p></div>"""


def _predictions(runs: Mapping[Mode, ModeRun], figures: Mapping[Mode, Figures]) -> str:
    run, one = runs.get(Mode.PRECISE), figures.get(Mode.PRECISE)
    if run is None or one is None or one.prediction is None:
        return ""
    prediction = one.prediction
    rows = "".join(
        f"<tr><td><code>{escape(explanation.request_id)}</code></td><td>{escape(explanation.pod)}</td>"
        f'<td class="number">{explanation.predicted_tokens}</td><td class="number">{explanation.actual_tokens}</td>'
        f"<td><b>{escape(explanation.cause.value)}</b>: {escape(explanation.sentence)}</td></tr>"
        for explanation in run.explanations[:SHOWN_EXPLANATIONS]
    )
    table = (
        f'<div class="card scroll"><table><tr><th>request</th><th>pod</th><th class="number">foreseen</th><th class="number">reported</th><th>what came between</th></tr>{rows}</table></div>'
        if rows
        else ""
    )
    more = len(run.explanations) - SHOWN_EXPLANATIONS
    return f"""
<h2>Did the picker know?</h2>
<p>For {prediction.equal} of {prediction.requests} requests ({prediction.share:.1%}) the pod reported exactly the hit, to the token, that the picker had foreseen.
{"The others, and what came between decision and computation:" if rows else ""}</p>
{table}{f'<p class="note">{more} more are in results.json.</p>' if more > 0 else ""}"""


def _foot(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f'<h2>How this was measured</h2><div class="card"><table>{rows}</table></div>'


def _count(modes: int) -> str:
    return {1: "one way", 2: "two ways", 3: "three ways"}[modes]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _short(scorer: str) -> str:
    return SHORT.get(scorer, scorer.removesuffix("-scorer"))
