"""What an operator reads: changes, first occurrences, counts; never a flood."""

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest

from epp.domain import Api, Decision, EndCause, EndpointId, InferenceRequest, ParityLoss, RequestEnd, TokenizedRequest, TokenState
from epp.errors import BadRequestError
from epp.observability.logs import MAX_QUOTED, LogReporter

A, B = EndpointId("team/a"), EndpointId("team/b")
Decide = Callable[..., Decision]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines since the last call."""
    caplog.set_level(logging.INFO, "epp")

    def take() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return take


Lines = Callable[[], list[str]]


def test_a_pod_that_is_down_is_logged_when_it_goes_and_when_it_comes_back(lines: Lines) -> None:
    """Not 20 times a second."""
    reporter = LogReporter()
    for reason in ("connect", "connect", "status", "status"):
        reporter.scrape_failed(A, reason)
    assert lines() == [
        "metrics of team/a cannot be read: connect; its last ones stay",
        "metrics of team/a cannot be read: status; its last ones stay",
    ]
    reporter.scrape_recovered(A)
    reporter.scrape_recovered(B)
    assert lines() == ["metrics of team/a can be read again"]


def test_an_endpoint_that_takes_no_connections_is_named_with_what_is_left(lines: Lines) -> None:
    """Where nothing is left requests are sent nevertheless, and that is an error."""
    reporter = LogReporter()
    reporter.endpoint_unreachable(A, 1)
    reporter.endpoint_unreachable(B, 0)
    reporter.endpoint_reachable(B, 1)
    assert lines() == [
        "endpoint team/a takes no connections: it gets no requests until it does (endpoints left: 1)",
        "endpoint team/b takes no connections, and no other does: requests are sent nevertheless",
        "endpoint team/b takes connections again (endpoints that do: 1)",
    ]


def test_stream_states_are_logged_when_they_change(lines: Lines) -> None:
    """And again for an endpoint that left and came back."""
    reporter = LogReporter()
    for _ in range(3):
        reporter.kv_stream_state(A, 0, "live")
    reporter.kv_stream_state(A, 1, "live")
    reporter.endpoint_removed(A)
    reporter.kv_stream_state(A, 0, "live")
    assert lines() == [f"KV events of team/a, rank {rank}: live" for rank in (0, 1, 0)]


def test_events_that_cannot_be_used_come_with_a_remedy(lines: Lines) -> None:
    """Where a word alone does not say what to do; the rest names what was wrong."""
    reporter = LogReporter()
    for _ in range(10):
        reporter.kv_event_error(A, "flood")
    reporter.kv_event_error(A, "block_size")
    first, tenth, other = lines()
    assert first.startswith("KV events of team/a: flood (more than an engine can have to say; what came is dropped, ")
    assert "--page-size" in first
    assert tenth.startswith(first)
    assert other == "KV events of team/a: block size"


def test_requests_without_tokens_are_logged_once_and_then_counted(lines: Lines) -> None:
    """Per model and reason; the template's own words are shown."""
    reporter = LogReporter()
    request = InferenceRequest(Api.CHAT, "/v1/chat/completions", "m", {}, size_bytes=10)
    for _ in range(100):
        reporter.tokenized(request, TokenizedRequest(TokenState.ABSENT, reason="template", detail="roles must alternate"))
    reporter.tokenized(request, TokenizedRequest(TokenState.EXACT, [[1]]))
    text = "no tokens for model 'm': template: roles must alternate"
    assert lines() == [text, f"{text} (10 so far)", f"{text} (100 so far)"]


def test_rejections_are_logged_one_by_one_at_first(lines: Lines) -> None:
    """Enough to see what is wrong; a client that retries for ever is counted."""
    reporter = LogReporter()
    for _ in range(150):
        reporter.rejected(None, BadRequestError("no JSON"))
    seen = lines()
    assert seen[0] == "rejected with 400 BadRequest, model '': no JSON"
    assert len(seen) == 11
    assert seen[-1].endswith("(100 so far)")


def test_no_client_can_grow_the_tallies(lines: Lines) -> None:
    """Beyond a thousand models, the rest counts as one."""
    reporter = LogReporter()
    for i in range(3000):
        request = InferenceRequest(Api.CHAT, "/", f"m{i}", {}, size_bytes=10)
        reporter.tokenized(request, TokenizedRequest(TokenState.ABSENT, reason="unknown_model"))
    assert len(lines()) == 1000 + 4


def test_a_plugin_that_fails_is_shown_with_its_trace_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is a defect of the plugin, and its author needs the place."""
    reporter = LogReporter()
    for _ in range(5):
        reporter.plugin_failed("my-scorer", ZeroDivisionError("x"))
    (record,) = caplog.records
    assert record.getMessage() == "plugin my-scorer failed"
    assert record.exc_info is not None


def test_an_answer_that_failed_names_the_endpoint(lines: Lines, decide: Decide) -> None:
    """With Envoy's flags; answers that end well or by the client's will are no news."""
    reporter = LogReporter()
    decision = decide()
    for cause in EndCause:
        reporter.ended(decision, RequestEnd(decision.id, cause, status=503, response_flags=("UC",)))
    failed, aged = lines()
    assert failed == "endpoint team/a failed a request: status 503, flags UC"
    assert "access log" in aged


def test_a_get_whose_end_nobody_told_is_no_news(lines: Lines, decide: Decide) -> None:
    """It was no load, and a gateway need not tell of it."""
    decision = decide(body=False)
    LogReporter().ended(decision, RequestEnd(decision.id, EndCause.AGED_OUT))
    assert lines() == []


SCRIPT = """
import logging
from epp.observability.log_format import LogSettings, configure_logging
configure_logging(LogSettings({verbosity}))
for level in (logging.DEBUG, logging.INFO, logging.WARNING):
    logging.getLogger("epp.x").log(level, "first\\nsecond")
logging.getLogger("other").info("chatter")
logging.getLogger("other").warning("trouble")
"""


@pytest.mark.parametrize(("verbosity", "count"), [(0, 2), (1, 2), (2, 3), (3, 3), (4, 4)])
def test_verbosity_and_form_of_a_line(verbosity: int, count: int) -> None:
    """UTC, level, name, one line each whatever the text holds; libraries only when there is trouble."""
    run = subprocess.run([sys.executable, "-c", SCRIPT.format(verbosity=verbosity)], capture_output=True, text=True, check=True)
    lines = run.stderr.splitlines()
    assert len(lines) == count
    assert lines[-1].endswith("Z WARNING other: trouble")
    assert lines[-2].endswith(r"Z WARNING epp.x: first\nsecond")


def test_what_a_client_chose_is_quoted_in_short(lines: Lines) -> None:
    """A megabyte as model name is no megabyte of log."""
    reporter = LogReporter()
    request = InferenceRequest(Api.CHAT, "/v1/chat/completions", "m" * 1_000_000, {}, 1)
    reporter.tokenized(request, TokenizedRequest(TokenState.ABSENT, reason="unknown_model", detail="d" * 1_000_000))
    reporter.rejected(request, BadRequestError("e" * 1_000_000))
    assert [len(line) < 3 * MAX_QUOTED for line in lines()] == [True, True]


def test_parity_is_lost_and_restored(caplog: pytest.LogCaptureFixture) -> None:
    """One line that names the model, the pods, the likely cause and where to look."""
    caplog.set_level("INFO")
    reporter = LogReporter()
    pods = [EndpointId(f"team/{i}") for i in range(12)]
    reporter.parity_lost(ParityLoss("tiny", pods, "bos", "store other blocks", "beginning-of-sequence token", 9, 12))
    assert "of model tiny store other blocks (9 of the last 12 requests, on team/0, team/1, " in caplog.text
    assert "team/9 and 2 more" in caplog.text
    assert "Likely cause: beginning-of-sequence token. What to do: docs/parity.md, bos" in caplog.text
    reporter.parity_restored("tiny")
    assert "again" in caplog.records[-1].message
    reporter.parity_forgotten("tiny")
    assert "is over: those it was about restarted" in caplog.records[-1].message
