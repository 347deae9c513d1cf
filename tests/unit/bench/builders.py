"""A run as it could have been, in round figures."""

from bench.records import CHUNKS, LONG, SHORT, DirectRow, EventsRow, MemoryRow, Results, Row, Sample, Spread, Step, Work
from epp.testing.bootstrap import Responses

PICKERS = ("epp fast", "epp grpc", "go <epp>")


def row(
    work: Work,
    workload: str,
    picker: str,
    picker_us: float,
    envoy_us: float,
    *,
    tls: bool = False,
    messages: int = 3,
    responses: Responses = Responses.ACCESS_LOG,
) -> Row:
    """Two samples, one 10 % below and one 10 % above these figures, of 1,000 requests each."""
    samples = [Sample(2.0, 1000, factor * picker_us * 1e-3, factor * envoy_us * 1e-3, messages * 1000) for factor in (0.9, 1.1)]
    return Row(work, workload, picker, tls, responses.value, samples)


def results(*, fast_us: float = 100.0, chunk_us: float = 5.0, leaked_messages: int = 0) -> Results:
    """Envoy needs 300 us a request and 50 us a response message. `leaked_messages`: seen for each chunk in the default mode."""
    run = Results(Spread((0.9e-3, 1.0e-3, 1.1e-3)))
    for work in Work:
        for size, factor in (("5 KB", 1.0), ("220 KB", 4.0)):
            run.requests += [row(work, size, name, fast_us * factor * (i + 1), 300.0 * factor) for i, name in enumerate(PICKERS)]
            run.requests.append(row(work, size, "epp fast", fast_us * factor * 1.5, 300.0 * factor, tls=True))
        run.direct += [DirectRow(work, "5 KB", name, [9000.0, 11000.0], [0.5 + 0.45 * i] * 2) for i, name in enumerate(PICKERS[:2])]
    for name in PICKERS:
        run.answers += [
            row(Work.BARE, LONG, name, 150.0, 2300.0, messages=3 + CHUNKS * leaked_messages),
            row(Work.BARE, SHORT, name, 100.0, 300.0, messages=3 + leaked_messages),
        ]
        through = Responses.FULL_DUPLEX
        run.answers += [
            row(
                Work.BARE, LONG, name, 100.0 + chunk_us * (CHUNKS - 1), 300.0 + 50.0 * (CHUNKS - 1), messages=5 + CHUNKS, responses=through
            ),
            row(Work.BARE, SHORT, name, 100.0, 300.0, messages=6, responses=through),
        ]
    run.memory = [MemoryRow("epp fast", 5000, [20480.0, 20480.0], 70 << 20)]
    latencies = [[0.001 * i for i in range(1, 101)]] * 2
    run.events = [
        EventsRow(0.0, 2.0, [0.1, 0.1], [0, 0], [0.05, 0.05], latencies),
        EventsRow(10.0, 2.0, [0.5, 0.5], [32_000, 32_000], [0.25, 0.25], latencies),
    ]
    run.steps = [Step("an access-log entry", Spread((12e-6, 13e-6, 14e-6)))]
    run.held = {"a process": 210e6, "a block": 119.6}
    run.facts = {"epp": "1", "machine": "a <machine>"}
    return run
