"""What a route's listener makes of an answer that comes by."""

import pytest

from epp.domain import EndCause, RequestEnd, Usage
from epp.extproc.events import AnswerListener, Route
from epp.picking.answer_seen import GAPS
from tests.unit.picking.rig import Rig

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'


def listener(route: Route) -> AnswerListener:
    assert route.listener is not None
    return route.listener


def test_times_size_status_and_usage_of_a_streamed_answer() -> None:
    """Counted from when the request was here whole; an empty chunk is no chunk."""
    rig = Rig("10.0.0.1")
    route = rig.route()
    answer = listener(route)
    answer.began(200, event_stream=True)
    for after, data in ((1.0, b""), (0.5, b"data: {}\n\n"), (0.25, USAGE[:20]), (0.125, USAGE[20:]), (1.0, b"")):
        rig.time += after
        answer.body(data)
    rig.time += 0.125
    rig.close(route.decision_id, complete=True, bodies=True)

    [end] = rig.recorder.ends
    assert end == RequestEnd(
        route.decision_id,
        EndCause.FINISHED,
        status=200,
        duration_s=3.0,
        bytes_sent=len(USAGE) + 10,
        streamed=True,
        first_chunk_s=1.5,
        last_chunk_s=1.875,
        usage=Usage(7, 2, 9),
    )
    assert rig.recorder.gaps == [0.25, 0.125]


def test_who_served_is_known_without_a_log() -> None:
    """A gateway that tells it in the answer's metadata needs none; a log's word stands above it."""
    rig = Rig("10.0.0.1")
    told, logged = rig.route(), rig.route()
    for route in (told, logged):
        listener(route).began(200, event_stream=False, served="10.0.0.9:8000")
    rig.close(told.decision_id, complete=True, bodies=True)
    rig.director.ended(RequestEnd(logged.decision_id, EndCause.FINISHED, served="10.0.0.1:8000"))

    assert [end.served for end in rig.recorder.ends] == ["10.0.0.9:8000", "10.0.0.1:8000"]


def test_what_the_access_log_tells_stands() -> None:
    """Envoy's own measures are kept; what only the answer tells is added."""
    rig = Rig("10.0.0.1")
    route = rig.route()
    listener(route).began(200, event_stream=False)
    listener(route).body(b'{"usage":{"prompt_tokens":7}}')

    rig.director.ended(RequestEnd(route.decision_id, EndCause.FINISHED, status=206, duration_s=9.0, bytes_sent=5))

    [end] = rig.recorder.ends
    assert (end.status, end.duration_s, end.bytes_sent, end.streamed) == (206, 9.0, 5, False)
    assert end.usage == Usage(prompt_tokens=7)
    assert rig.recorder.gaps == []


@pytest.mark.parametrize("asked", [True, False])
def test_a_filter_that_skips_response_headers(asked: bool) -> None:  # noqa: FBT001  # a table
    """What the request asked for tells the kind of answer."""
    rig = Rig("10.0.0.1", real_parser=True)
    route = rig.route(b'{"model":"m","prompt":"p","stream":true}' if asked else b'{"model":"m","prompt":"p"}')

    listener(route).body(USAGE if asked else b'{"usage":{"prompt_tokens":7,"completion_tokens":2}}')
    rig.close(route.decision_id, complete=True)

    assert rig.recorder.ends[0].usage == Usage(7, 2, 9)


def test_gaps_are_handed_on_in_batches() -> None:
    """An answer of any length keeps a bounded number of them."""
    rig = Rig("10.0.0.1")
    route = rig.route()
    listener(route).began(200, event_stream=True)
    for _ in range(GAPS + 1):
        rig.time += 0.5
        listener(route).body(b":\n")

    assert rig.recorder.gaps == [0.5] * GAPS
    listener(route).body(b":\n")
    rig.close(route.decision_id, complete=True)
    assert rig.recorder.gaps == [0.5] * GAPS + [0.0]


def test_an_answer_that_stays_away_tells_nothing() -> None:
    """The default: only the log speaks."""
    rig = Rig("10.0.0.1")
    route = rig.route()

    rig.director.ended(RequestEnd(route.decision_id, EndCause.FINISHED, status=200))

    assert rig.recorder.ends == [RequestEnd(route.decision_id, EndCause.FINISHED, status=200)]
