"""Table, page and results say the same, and the page stands alone."""

import json
import re

from epp.demo import page, results, samples, terminal
from epp.demo.figures import measure
from epp.demo.records import Cause, Explanation, Mode, ModeRun
from epp.demo.workload import QUICK, generate
from tests.unit.demo.builders import choice, mode_run, played

WORKLOAD = generate(1, QUICK)


def runs() -> dict[Mode, ModeRun]:
    """Two modes; precise foresaw one hit of two."""
    precise = mode_run(
        [played("a", prompt=160, hit=144, ttft=0.1), played("b", pod="pod-1", prompt=160, hit=16, ttft=0.3, sent=1.0)],
        bounds=[144, 144],
        choices=[choice("a", "pod-0", [9, 0]), choice("b", "pod-1", [0, 2])],
    )
    precise.explanations = [Explanation("b", "pod-1", 32, 16, Cause.EVICTED, ("a",), "a & co needed room")]
    robin = mode_run([played("r", prompt=160, hit=0, ttft=2.0)], bounds=[0], mode=Mode.ROUND_ROBIN)
    return {Mode.PRECISE: precise, Mode.ROUND_ROBIN: robin}


def test_the_table_has_a_column_for_each_mode() -> None:
    """The figures a person compares stand side by side."""
    figures = {mode: measure(run) for mode, run in runs().items()}
    table = terminal.table(figures)
    assert re.search(r"precise +round robin", table)
    assert re.search(r"prefix hit rate +50\.0 % +0\.0 %", table)
    assert re.search(r"time to first token, 90 % +0\.28 s +2\.00 s", table)
    assert re.search(r"hit foreseen to the token +50\.0 % +-", table)


def test_the_end_shows_each_pod_of_a_sample() -> None:
    """The chosen pod is marked, and every pod has its blocks and its score."""
    ours = runs()
    text = terminal.render({mode: measure(run) for mode, run in ours.items()}, samples.choose(ours[Mode.PRECISE]))
    assert re.search(r"▶ pod-0 .* 9 of 10 +1\.80 = prefix-cache 1\.80 \+ active-request 0\.00", text)
    assert re.search(r"  pod-1 .* 0 of 10 +0\.00", text)
    assert "Foreseen: of so many requests epp said beforehand" in text


def test_the_page_needs_nothing_else_and_escapes_what_users_wrote() -> None:
    """No request leaves the page, in either colour scheme, and a message is text."""
    ours = runs()
    figures = {mode: measure(run) for mode, run in ours.items()}
    html = page.render(WORKLOAD, ours, figures, samples.choose(ours[Mode.PRECISE]), {"Seed": "1 <2>"})
    assert not re.search(r"(src|href)=|https?://|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert "Where is &lt;b&gt;my&lt;/b&gt; card?" in html
    assert "a &amp; co needed room" in html
    assert "1 &lt;2&gt;" in html


def test_results_hold_every_request_with_prediction_and_truth() -> None:
    """What the acceptance test reads."""
    ours = runs()
    figures = {mode: measure(run) for mode, run in ours.items()}
    result = json.loads(results.encode(WORKLOAD, ours, figures, samples.choose(ours[Mode.PRECISE]), {}))
    precise = result["modes"]["precise"]
    assert precise["prediction"] == {"requests": 2, "equal": 1, "share": 0.5, "explained": 1}
    assert [(r["request_id"], r["predicted_hit_tokens"], r["actual_hit_tokens"]) for r in precise["requests"]] == [
        ("a", 144, 144),
        ("b", 32, 16),
    ]
    assert [(d["request_id"], d["cause"], d["by"]) for d in precise["differences"]] == [("b", "evicted", ["a"])]
    assert result["modes"]["round-robin"]["requests"][0]["decision"] is None


def test_failures_are_listed_but_not_all() -> None:
    """A broken fleet does not fill the screen."""
    text = terminal.failures([(f"r{i}", "status 503") for i in range(9)])
    assert text.splitlines()[0] == "9 requests had no whole answer:"
    assert text.endswith("and 4 more, all in results.json")
