"""The end of `epp demo-vllm` says what was compared, and how far it is apart."""

import re

from epp.demo.records import Cause, Explanation
from epp.demo.vllm import report
from epp.demo.vllm.counters import Counters
from epp.demo.vllm.verdict import EngineVerdict

GOOD = EngineVerdict("vllm-0", 116, Counters(116, 277_565, 245_664), 245_600, 32)
BAD = EngineVerdict("vllm-1", 10, Counters(10, 20_000, 15_000), 14_600, 32)


def test_each_engine_has_a_line() -> None:
    """Foreseen and counted stand side by side, with the distance in the unit of the limit."""
    text = report.comparison([GOOD])
    assert re.search(r"vllm-0 +116 +277,565 +245,600 +245,664 +64 +0\.017", text)
    assert "At most one block (32 tokens) a request may lie between them: it does." in text


def test_too_far_apart_is_said_aloud() -> None:
    """One engine is enough."""
    assert "IT IS MORE" in report.comparison([GOOD, BAD])


def test_each_difference_has_its_reason_up_to_a_screenful() -> None:
    """What a request's own usage reported beside what was foreseen, and why they differ."""
    one = Explanation("a", "vllm-0", 64, 32, Cause.EVICTED, ("b",), "b needed room")
    text = report.differences(40, [one] * 10)
    assert text.startswith("10 of 40 requests reported another hit than epp had foreseen:\n")
    assert "a on vllm-0: foreseen 64, reported 32; evicted: b needed room" in text
    assert text.endswith("and 2 more, all in results.json\n")


def test_no_difference_is_said_too() -> None:
    """The best outcome reads as one."""
    assert report.differences(40, []) == "Each of 40 requests reported exactly the hit epp had foreseen, to the token.\n"
