"""The only place that renders a RequestError for the wire (spec/protocol.md 1.5). Called by `codec`, once per rejected request.

Status, text and headers are llm-d's, because clients and dashboards know them: a plain text without content type
(Envoy adds text/plain), and the reason of a drop as a header.
"""

from epp import names
from epp._proto import ext_proc_pb2 as pb
from epp.errors import RequestError


def render(error: RequestError, response: pb.ImmediateResponse) -> None:
    """Fill in the immediate response for this error."""
    response.status.code = error.http_status
    # A message may quote the client's bytes; what UTF-8 cannot say must not turn a 400 into a crash.
    response.body = f"inference error: {error.code} - {error.message}".encode(errors="replace")
    if error.dropped_reason is not None:
        header = response.headers.set_headers.add().header
        header.key = names.DROPPED_REASON
        header.raw_value = error.dropped_reason.encode()
