"""What an engine counted is read from its page, here pages a real vLLM 0.32 made."""

from pathlib import Path

import pytest

from epp.demo.vllm.counters import Counters, PageError, parse

RECORDINGS = Path(__file__).parents[2] / "data" / "vllm-0.32.0"


@pytest.mark.parametrize(("recording", "counters"), [("requests", Counters(30, 8_031, 2_976)), ("eviction", Counters(40, 16_000, 0))])
def test_a_page_of_vllm(recording: str, counters: Counters) -> None:
    """Requests count however they ended; the gauges of creation times beside each counter do not."""
    assert parse((RECORDINGS / recording / "metrics.txt").read_text()) == counters


def test_growth_is_a_difference() -> None:
    """An engine that lived before the run starts at its own figures."""
    assert Counters(12, 3_000, 2_048).since(Counters(2, 1_000, 1_024)) == Counters(10, 2_000, 1_024)


def test_a_page_without_the_counter_names_it() -> None:
    """A server that is no vLLM, or vLLM without prefix caching, is not taken for one without hits."""
    page = (RECORDINGS / "requests" / "metrics.txt").read_text()
    with pytest.raises(PageError, match="vllm:prefix_cache_hits_total"):
        parse(page.replace("prefix_cache_hits", "other"))
