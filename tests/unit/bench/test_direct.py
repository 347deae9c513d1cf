"""The hand-written frames of the direct client, read back by an independent HTTP/2 implementation."""

import struct

import h2.config
import h2.connection
import h2.events

from bench import direct
from epp._proto import ext_proc_pb2
from epp.extproc import access_log, codec
from epp.extproc.events import ReplyRequestHeaders, Route


def test_a_request_is_two_grpc_messages_on_one_stream() -> None:
    """Headers, then the body to its end, however many frames it takes."""
    body = bytes(range(256)) * 100
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(direct.PREFACE + direct.frame(4, 0, 0, b""))
    events = server.receive_data(b"".join(direct.numbered(direct.request_frames(body, end=True), 1)))

    (request,) = (event for event in events if isinstance(event, h2.events.RequestReceived))
    assert (b":path", b"/envoy.service.ext_proc.v3.ExternalProcessor/Process") in [(bytes(k), bytes(v)) for k, v in request.headers]
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    data = b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
    first, second = _messages(data)
    assert ext_proc_pb2.ProcessingRequest.FromString(first).WhichOneof("request") == "request_headers"
    assert ext_proc_pb2.ProcessingRequest.FromString(second).request_body.body == body


def test_the_log_entry_finds_the_decision_it_came_from() -> None:
    """As Envoy's would: by the metadata of the reply."""
    decision = access_log.new_id("bench", "1")
    entry = direct.log_entry(codec.encode(ReplyRequestHeaders(Route("10.0.0.1:8000", decision), 0)))

    assert entry is not None
    message = direct.log_message([entry])
    (end,) = access_log.decode(message, "bench").ends
    assert end.decision_id == decision


def _messages(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = struct.unpack(">xI", data[:5])[0]
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found
