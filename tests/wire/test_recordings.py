"""Messages a real Envoy sent (tests/data/envoy-1.40), decoded."""

import base64
import json
import re
from pathlib import Path

import pytest

from epp.domain import EndCause
from epp.extproc import access_log, codec, origin
from epp.extproc.events import BodyMode, RequestBody, RequestHeaders, ResponseBody, ResponseHeaders

DATA = Path(__file__).parent.parent / "data" / "envoy-1.40" / "messages.json"
RECORDED = {name: base64.b64decode(text) for name, text in json.loads(DATA.read_bytes()).items()}


@pytest.mark.parametrize(
    ("name", "method", "end_of_stream", "mode"),
    [
        ("request_headers_get", "GET", True, BodyMode.FULL_DUPLEX_STREAMED),
        ("request_headers_post", "POST", False, BodyMode.FULL_DUPLEX_STREAMED),
        ("request_headers_post_buffered", "POST", False, BodyMode.BUFFERED),
    ],
)
def test_request_headers(name: str, method: str, mode: BodyMode, *, end_of_stream: bool) -> None:
    """Envoy's first message tells headers, the end of the stream and how it is configured."""
    event = codec.decode(RECORDED[name])
    assert isinstance(event, RequestHeaders)
    assert (event.headers[":method"], event.end_of_stream, event.request_body_mode) == (method, end_of_stream, mode)
    assert event.subset is None
    assert event.headers["user-agent"].startswith("curl/")


def test_bodies_and_response_headers() -> None:
    """Envoy marks the end of a body with an empty chunk of its own."""
    assert codec.decode(RECORDED["request_body"]) == RequestBody(b"x", end_of_stream=False)
    assert codec.decode(RECORDED["request_body_end"]) == RequestBody(b"", end_of_stream=True)
    assert codec.decode(RECORDED["response_headers"]) == ResponseHeaders(200, end_of_stream=False, content_type="text/event-stream")
    assert codec.decode(RECORDED["response_headers_only"]) == ResponseHeaders(204, end_of_stream=True)
    assert codec.decode(RECORDED["response_body"]) == ResponseBody(b"hello", end_of_stream=False)
    assert codec.decode(RECORDED["response_body_end"]) == ResponseBody(b"", end_of_stream=True)


@pytest.mark.parametrize(
    ("name", "cause", "status", "flags", "bytes_sent"),
    [
        ("access_log_finished", EndCause.FINISHED, 200, (), 25),
        ("access_log_client_gone", EndCause.CLIENT_GONE, 200, ("DC",), 15),
        ("access_log_upstream_cut", EndCause.UPSTREAM_FAILED, 200, ("UPE",), 5),
        ("access_log_upstream_reset", EndCause.UPSTREAM_FAILED, 503, ("UC",), 95),
        ("access_log_upstream_refused", EndCause.UPSTREAM_FAILED, 503, ("UF",), 98),
    ],
)
def test_ends_of_answers(name: str, cause: EndCause, status: int, flags: tuple[str, ...], bytes_sent: int) -> None:
    """Each way an answer can end is told apart."""
    [end] = access_log.decode(RECORDED[name], "").ends
    assert end.decision_id.startswith("d")
    assert (end.cause, end.status, end.response_flags, end.bytes_received, end.bytes_sent) == (cause, status, flags, 1, bytes_sent)
    assert end.served is not None
    assert end.served.startswith("127.0.0.1:")
    assert end.attempts == 1
    assert end.duration_s is not None
    assert 0 < end.duration_s < 1
    assert (end.first_upstream_byte_s is None) == (status == 503)


@pytest.mark.parametrize("name", ["access_log_rejected", "access_log_client_gone_while_picking"])
def test_requests_that_got_no_endpoint(name: str) -> None:
    """A request we rejected, or whose client left before we chose, ends without a decision, and with an origin."""
    [end] = access_log.decode(RECORDED[name], "").ends
    assert end.decision_id == ""
    assert end.origin is not None
    assert re.fullmatch(r"\d{19}\|127\.0\.0\.1:\d+", end.origin)


def test_stream_and_log_entry_of_one_request_name_it_alike() -> None:
    """A client left before Envoy had our answer: the entry carries no decision, and is matched by its origin."""
    event = codec.decode(RECORDED["request_headers_with_attributes"])
    assert isinstance(event, RequestHeaders)
    [end] = access_log.decode(RECORDED["access_log_of_the_request_with_attributes"], "").ends
    assert (end.decision_id, end.cause) == ("", EndCause.CLIENT_GONE)
    assert end.origin is not None
    assert event.attributes is not None
    assert end.origin == origin.from_attributes(event.attributes)
