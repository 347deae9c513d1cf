"""What follows from the samples: the price of one chunk of an answer, and which goals were met. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.records import BLOCK_GOAL, BLOCK_ROWS, CHUNKS, LONG, SHORT, STEP_GOALS, UNDER_LOAD, Goal, Results, Row, Spread, Work
from epp.testing.bootstrap import Responses

FAST = "epp fast"
COMPILED = f"{FAST}, compiled"
"""What the goals are for: the build a fleet runs. The pure one stands in for it where that did not take part."""


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """What one more chunk of an answer costs: the difference between long and short answers, shared out."""

    picker: str
    responses: str
    messages: float
    """ext_proc messages a chunk."""
    picker_cpu: Spread
    """Seconds a message, or a chunk where there are no messages."""
    envoy_cpu: Spread

    @property
    def ratio(self) -> Spread:
        """The picker's CPU over its Envoy's."""
        return Spread(tuple(mine / theirs for mine, theirs in zip(self.picker_cpu.values, self.envoy_cpu.values, strict=True)))


def chunk_costs(results: Results) -> Iterator[ChunkCost]:
    """One for each picker and way of learning of the end of an answer."""
    shorts = {(row.picker, row.responses): row for row in results.answers if row.workload == SHORT}
    for row in results.answers:
        if row.workload == LONG:
            short = shorts[row.picker, row.responses]
            more = row.messages - short.messages
            share = more if row.responses == Responses.FULL_DUPLEX.value else CHUNKS - 1
            yield ChunkCost(
                row.picker,
                row.responses,
                round(more / (CHUNKS - 1), 2),
                _difference(row.picker_cpu, short.picker_cpu, share),
                _difference(row.envoy_cpu, short.envoy_cpu, share),
            )


def _difference(long: Spread, short: Spread, share: float) -> Spread:
    return Spread(tuple((a - b) / share for a, b in zip(long.values, short.values, strict=True)))


def envoys_request(results: Results, picker: str) -> float | None:
    """The CPU of a picker's own Envoy for a plain request of 5 KB, in seconds: the yardstick of both goals. None: it was not measured."""
    return next((row.envoy_cpu.median for row in results.requests if _is_yardstick(row, picker)), None)


def _is_yardstick(row: Row, picker: str) -> bool:
    return (row.picker, row.tls, row.work, row.workload) == (picker, False, Work.BARE, "5 KB")


def goals(results: Results) -> list[Goal]:
    """Those of the budgets that hold on any machine; one whose rows were not measured is not among them."""
    measured = {row.picker for row in (*results.requests, *results.answers)}
    found = list(_goals_of(results, COMPILED if COMPILED in measured else FAST))
    for what, held in results.held.items():
        if what.startswith("epp ") and what.endswith(UNDER_LOAD):
            found.append(Goal(f"MB resident, {what}", 300.0, held / 1e6))
    for step in results.steps:
        if step.name in STEP_GOALS:
            text, limit, factor = STEP_GOALS[step.name]
            found.append(Goal(text, limit, step.seconds.median * factor))
    found += [Goal(f"{what}: bytes", BLOCK_GOAL, results.held[what]) for what in BLOCK_ROWS if what in results.held]
    return found


def _goals_of(results: Results, picker: str) -> Iterator[Goal]:
    called = f"fast transport{picker.removeprefix(FAST)}"
    for row in results.requests:
        if _is_yardstick(row, picker):
            yield Goal(f"{called}, everything but the decision, 5 KB: epp's CPU over Envoy's", 0.5, row.ratio.median)
    request = envoys_request(results, picker)
    for cost in chunk_costs(results):
        if cost.picker == picker and cost.responses == Responses.FULL_DUPLEX.value and request is not None:
            text = f"{called}, a FULL_DUPLEX response message: epp's CPU over Envoy's for a 5 KB request"
            yield Goal(text, 0.15, cost.picker_cpu.median / request)
        elif cost.picker == picker and cost.responses == Responses.ACCESS_LOG.value:
            yield Goal("our default mode: ext_proc messages for one more chunk of an answer", 0.0, cost.messages)
