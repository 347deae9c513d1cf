"""The figures of a mode are what one would count by hand."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.demo.figures import measure, quantile
from epp.demo.records import Cause, Explanation
from tests.unit.demo.builders import choice, mode_run, played


def test_rates_count_tokens_not_requests() -> None:
    """A long prompt weighs more than a short one, against its bound too."""
    figures = measure(mode_run([played("a", prompt=100, hit=0), played("b", prompt=900, hit=800)], bounds=[0, 880]))
    assert figures.hit_rate == pytest.approx(0.8)
    assert figures.bound_rate == pytest.approx(0.88)
    assert figures.share_of_bound == pytest.approx(800 / 880)


def test_a_failed_request_is_counted_and_otherwise_left_out() -> None:
    """It has neither a hit nor a time, and its bound would be unfair."""
    failed = played("b", prompt=0, ttft=9.0)
    failed.error = "status 503: nobody there"
    figures = measure(mode_run([played("a", hit=50, ttft=0.2), failed], bounds=[60, 60]))
    assert (figures.requests, figures.failed) == (2, 1)
    assert (figures.prompt_tokens, figures.hit_tokens, figures.bound_tokens) == (100, 50, 60)
    assert figures.ttft(1.0) == pytest.approx(0.2)


def test_load_of_each_pod() -> None:
    """A pod without requests counts in the mean."""
    figures = measure(mode_run([played("a", pod="pod-1", prompt=100, hit=40), played("b", pod="pod-1")], bounds=[0, 0]))
    assert [(load.pod, load.requests, load.computed_tokens) for load in figures.pods] == [("pod-0", 0, 0), ("pod-1", 2, 160)]
    assert figures.busiest_to_mean == pytest.approx(2.0)


def test_predictions_are_held_against_what_the_pods_reported() -> None:
    """Of two predicted hits one came true; the other has an explanation."""
    run = mode_run(
        [played("a", hit=32), played("b", hit=16), played("c")],
        bounds=[32, 32, 0],
        choices=[choice("a", "pod-0", [2, 0]), choice("b", "pod-0", [2, 0])],
    )
    run.explanations = [Explanation("b", "pod-0", 32, 16, Cause.EVICTED, ("a",), "a needed room")]
    prediction = measure(run).prediction
    assert prediction is not None
    assert (prediction.requests, prediction.equal, prediction.explained, prediction.share) == (2, 1, 1, 0.5)


def test_without_a_picker_there_are_no_predictions() -> None:
    """Round robin foresees nothing."""
    assert measure(mode_run([played("a")], bounds=[0])).prediction is None


@given(st.lists(st.floats(0, 100), min_size=2), st.integers(1, 9))
def test_quantiles_are_the_standard_librarys(values: list[float], tenth: int) -> None:
    """Linear between ranks, both ends included."""
    expected = statistics.quantiles(values, n=10, method="inclusive")[tenth - 1]
    assert math.isclose(quantile(sorted(values), tenth / 10), expected, abs_tol=1e-6)
