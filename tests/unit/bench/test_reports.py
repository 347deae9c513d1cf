"""What a run is turned into: figures, goals, text, JSON and a picture."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from bench import chart, results, terminal
from bench.figures import chunk_costs, goals
from bench.records import UNDER_LOAD, Results, Spread
from epp.testing.bootstrap import Responses
from tests.unit.bench import builders


def test_a_spread_is_the_range_as_a_share_of_the_median() -> None:
    """Two samples of 90 and 110 are 100, give or take 20 %."""
    figure = Spread((110.0, 90.0))

    assert figure.median == 100.0
    assert figure.spread == pytest.approx(0.2)


def test_a_chunk_costs_what_long_answers_cost_more_than_short_ones() -> None:
    """The price of the request itself is not in it."""
    costs = {(cost.picker, cost.responses): cost for cost in chunk_costs(builders.results(chunk_us=5.0))}
    through = costs["epp fast", Responses.FULL_DUPLEX.value]

    assert through.messages == 1.0
    assert through.picker_cpu.median == pytest.approx(5e-6)
    assert through.envoy_cpu.median == pytest.approx(50e-6)
    assert through.ratio.median == pytest.approx(0.1)
    assert costs["epp fast", Responses.ACCESS_LOG.value].messages == 0.0


@pytest.mark.parametrize(
    ("figures", "passed"),
    [
        ({}, [True, True, True]),
        ({"fast_us": 151.0}, [False, True, True]),
        ({"chunk_us": 46.0}, [True, True, False]),
        ({"leaked_messages": 1}, [True, False, True]),
    ],
)
def test_goals_pass_up_to_their_limit(figures: dict[str, float], passed: list[bool]) -> None:
    """Each of the three is missed when its own figure is too large, and only then."""
    assert [goal.passed for goal in goals(builders.results(**figures))] == passed  # type: ignore[arg-type]  # a table of keywords


def test_only_what_was_measured_is_a_goal() -> None:
    """A run without answers does not claim that they cost nothing."""
    run = builders.results()
    run.answers = []

    assert len(goals(run)) == 1


def test_the_build_that_a_fleet_runs_is_judged() -> None:
    """Where the compiled build took part, the goals are for it, whatever the other one costs."""
    run = builders.results()
    run.requests = [*run.requests, *(replace(row, picker=f"{row.picker}, compiled") for row in run.requests if row.picker == "epp fast")]

    assert [goal.text.partition(":")[0] for goal in goals(run)] == ["fast transport, compiled, everything but the decision, 5 KB"]


def test_a_block_of_an_event_costs_what_the_picker_takes_more_than_without() -> None:
    """Its standing costs are not in it; latencies are those of the same rate."""
    lines = terminal.render(builders.results()).splitlines()
    never, often = (next(line for line in lines if line.startswith(start)).split() for start in ("never", "10 times a second"))

    assert never[1:] == ["0", "5%", "200", "50.0", "ms", "90.0", "ms", "99.0", "ms"]
    assert often[4:8] == ["16,000", "25%", "12.5", "us"]
    row = json.loads(results.encode(builders.results()))["events"][1]
    assert (row["times_a_second"], row["blocks"], row["latency_s"]["p99"]["median"]) == (10.0, [32_000, 32_000], pytest.approx(0.099))


@pytest.mark.parametrize(("held", "passed"), [({}, []), ({"epp fast": 299e6}, [True]), ({"epp fast": 301e6, "peer": 1e9}, [False])])
def test_a_picker_of_ours_may_hold_300_megabytes_under_load(held: dict[str, float], passed: list[bool]) -> None:
    """The figure of a peer is printed, and is no goal of ours."""
    run = Results(held={f"{picker}, {UNDER_LOAD}": size for picker, size in held.items()})
    assert [goal.passed for goal in goals(run)] == passed


def test_the_text_says_what_was_measured() -> None:
    """Absolute, as a multiple of the calibration, and beside Envoy."""
    text = terminal.render(builders.results(fast_us=100.0, chunk_us=54.0))
    line = next(line for line in text.splitlines() if line.startswith("transport, 5 KB"))

    assert line.split() == ["transport,", "5", "KB", "epp", "fast", "100", "us", "0.10", "300", "us", "0.33", "0%", "500"]
    assert "epp fast, TLS" in text
    assert "MISS  fast transport, a FULL_DUPLEX response message: epp's CPU over Envoy's for a 5 KB request: 0.18 (at most 0.15)" in text
    assert "PASS  fast transport, everything but the decision, 5 KB" in text
    assert "50% (not the limit)" in text
    assert "20.0 KiB" in text
    assert "210 MB" in text
    assert "120 B" in text


def test_the_file_holds_every_sample() -> None:
    """Whoever wants another figure can compute it."""
    run = builders.results()
    read = json.loads(results.encode(run))

    assert len(read["requests"]) == len(run.requests)
    assert read["requests"][0]["samples"][0]["requests"] == 1000
    assert read["goals"][0]["passed"] is True
    assert read["calibration_s"]["median"] == 1e-3


def test_the_picture_is_well_formed_whatever_a_peer_is_called() -> None:
    """Names are escaped; every picker has its bar."""
    texts = [element.text for element in ET.fromstring(chart.render(builders.results())).iter("{http://www.w3.org/2000/svg}text")]

    assert "go <epp>" in texts
    assert texts.count("Envoy itself") == 7


def test_a_run_of_one_block_can_be_shown() -> None:
    """`--only direct` has neither requests nor answers."""
    run = builders.results()
    run.requests, run.answers, run.steps, run.memory = [], [], [], []

    assert "Driven directly" in terminal.render(run)
    assert ET.fromstring(chart.render(run)).tag.endswith("svg")
