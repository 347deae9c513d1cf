"""results.json: every sample of a run and what follows from them. Pure. Seconds and bytes; fields may be added."""

import dataclasses
from collections.abc import Mapping

from bench.figures import chunk_costs, goals
from bench.records import EventsRow, Results, Row, Spread
from epp.demo.results import formatted


def encode(results: Results) -> bytes:
    """The file's bytes."""
    return formatted(
        {
            "facts": results.facts,
            "calibration_s": _spread(results.calibration),
            "steps": {step.name: _spread(step.seconds) for step in results.steps},
            "held_bytes": results.held,
            "requests": [_row(row) for row in results.requests],
            "answers": [_row(row) for row in results.answers],
            "one_more_chunk": [
                {
                    "picker": cost.picker,
                    "responses": cost.responses,
                    "messages": cost.messages,
                    "picker_cpu_s": _spread(cost.picker_cpu),
                    "envoy_cpu_s": _spread(cost.envoy_cpu),
                    "ratio": _spread(cost.ratio),
                }
                for cost in chunk_costs(results)
            ],
            "events": [_events(row) for row in results.events],
            "direct": [{**dataclasses.asdict(row), "work": row.work.value} for row in results.direct],
            "memory": [dataclasses.asdict(row) for row in results.memory],
            "goals": [{**dataclasses.asdict(goal), "passed": goal.passed} for goal in goals(results)],
        }
    )


def _row(row: Row) -> Mapping[str, object]:
    return {
        "work": row.work.value,
        "workload": row.workload,
        "picker": row.picker,
        "tls": row.tls,
        "responses": row.responses,
        "picker_cpu_s": _spread(row.picker_cpu),
        "envoy_cpu_s": _spread(row.envoy_cpu),
        "ratio": _spread(row.ratio),
        "messages": row.messages,
        "requests_per_s": row.rate,
        "samples": [dataclasses.asdict(sample) for sample in row.samples],
    }


def _events(row: EventsRow) -> Mapping[str, object]:
    return {
        "times_a_second": row.per_second,
        "seconds": row.seconds,
        "blocks": row.blocks,
        "picker_cpu_s": row.cpu_seconds,
        "picker_cores": _spread(Spread(tuple(row.share))),
        "requests": [len(found) for found in row.latencies],
        "latency_s": {f"p{share * 100:g}": _spread(row.latency(share)) for share in (0.5, 0.9, 0.99)},
    }


def _spread(figure: Spread) -> Mapping[str, object]:
    return {"median": figure.median, "spread": figure.spread, "values": figure.values}
