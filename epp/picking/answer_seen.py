"""What comes by of one answer, where the data plane sends answers through ext_proc at all.

One AnswerSeen per decision, which is all that is made where answers stay away; the reader of usage is made when an answer
begins. Told by the exchange, on the event loop, for every chunk; must not raise. Memory: the reader's, and GAPS numbers.
"""

from collections.abc import Callable
from typing import Final

from epp.domain import AnswerFormat, Decision, RequestEnd
from epp.reporter import Reporter
from epp.requests.grpc_usage import GrpcUsageReader, usage_reader
from epp.requests.usage import UsageReader

# Times between chunks are handed on in batches: one call for so many chunks instead of one for each.
GAPS: Final = 256


class AnswerSeen:
    """The AnswerListener of one decision."""

    __slots__ = (
        "_bytes",
        "_decision",
        "_first",
        "_gaps",
        "_last",
        "_now",
        "_reporter",
        "_served",
        "_since",
        "_status",
        "_streamed",
        "_usage",
    )

    def __init__(self, decision: Decision, reporter: Reporter, now: Callable[[], float], since: float) -> None:
        """`now` and `since`, when the request was here whole, in monotonic seconds. `reporter` is told the times between chunks."""
        self._decision = decision
        self._reporter = reporter
        self._now = now
        self._since = since
        # None until an answer begins, which in our default mode none does.
        self._usage: UsageReader | GrpcUsageReader | None = None
        self._status: int | None = None
        self._served: str | None = None
        self._streamed = False
        self._first: float | None = None
        self._last = since
        self._gaps: list[float] = []
        self._bytes = 0

    @property
    def body_seen(self) -> bool:
        """Some of its body came by, so all of it would have."""
        return self._first is not None

    def began(self, status: int | None, *, event_stream: bool, served: str | None = None) -> None:
        """The response headers."""
        self._served = served
        self._begin(status, event_stream=event_stream)

    def body(self, data: bytes) -> None:
        """One chunk; an empty one only ends the answer."""
        if not data:
            return
        # Where the filter skips response headers, what the client asked for tells the kind of answer.
        usage = self._usage or self._begin(None, event_stream=self._stream_asked)
        now = self._now()
        if self._first is None:
            self._first = now
        elif self._streamed:
            self._gaps.append(now - self._last)
            if len(self._gaps) >= GAPS:
                self._hand_on()
        self._last = now
        self._bytes += len(data)
        usage.feed(data)

    def complete(self, end: RequestEnd) -> None:
        """Put into `end` what nobody else told. Once, at the end."""
        if self._usage is None:
            return
        if self._gaps:
            self._hand_on()
        end.usage = self._usage.finish()
        end.streamed = self._streamed
        if end.status is None:
            end.status = self._status
        if end.served is None:
            end.served = self._served
        if self._first is not None:
            end.first_chunk_s, end.last_chunk_s = self._first - self._since, self._last - self._since
            if end.bytes_sent is None:
                end.bytes_sent = self._bytes

    @property
    def _stream_asked(self) -> bool:
        return self._decision.request is not None and self._decision.request.stream

    def _begin(self, status: int | None, *, event_stream: bool) -> UsageReader | GrpcUsageReader:
        self._status = status
        self._streamed = event_stream or self._stream_asked
        request = self._decision.request
        usage = self._usage = usage_reader(AnswerFormat.JSON if request is None else request.answer, event_stream=event_stream)
        return usage

    def _hand_on(self) -> None:
        gaps, self._gaps = self._gaps, []
        self._reporter.chunks_came(self._decision, gaps)
