"""One request over HTTP/2 with trailers, which no high-level client of ours can send. One connection a request."""

import asyncio

import h2.connection
import h2.events

STREAM_ID = 1
Headers = list[tuple[str, str]]


async def post_with_trailers(port: int, path: str, body: bytes, trailers: Headers) -> tuple[int, bytes]:
    """Send to 127.0.0.1:`port` with prior knowledge; returns status and body. Raises ConnectionError where there is no whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    connection.send_headers(STREAM_ID, [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "epp")])
    status, answer, rest, sent = 0, b"", memoryview(body), False
    try:
        while True:
            if not sent:
                rest = _send_what_fits(connection, rest)
                if not rest:
                    connection.send_headers(STREAM_ID, trailers, end_stream=True)
                    sent = True
            writer.write(connection.data_to_send())
            data = await reader.read(65536)
            if not data:
                raise ConnectionError(f"closed after status {status} and {len(answer)} bytes")
            for event in connection.receive_data(data):
                match event:
                    case h2.events.ResponseReceived():
                        status = int(dict(event.headers)[b":status"])
                    case h2.events.DataReceived():
                        answer += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, STREAM_ID)
                    case h2.events.StreamReset():
                        raise ConnectionError(f"stream reset, code {event.error_code}")
                    case h2.events.StreamEnded():
                        return status, answer
    finally:
        writer.close()


def _send_what_fits(connection: h2.connection.H2Connection, rest: memoryview) -> memoryview:
    """Send as much as flow control lets through; returns what is left."""
    while rest and (room := min(connection.local_flow_control_window(STREAM_ID), connection.max_outbound_frame_size)):
        connection.send_data(STREAM_ID, rest[:room].tobytes())
        rest = rest[room:]
    return rest
