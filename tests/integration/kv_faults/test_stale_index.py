"""An engine that emptied its cache while nobody heard: its own counters say that hits are missing, and epp learns it anew.

Decisions are made by hand; prompts, events and /metrics are the simulator's, read as epp reads them.
"""

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from epp.domain import NEVER_SCRAPED, DecisionId, EndpointId, EndpointMetrics, ParityLoss, TokenizedRequest, TokenState
from epp.kvcache.counted_hits import REQUESTS
from epp.kvcache.parity import ParityMonitor
from epp.kvcache.predictions import SETTLE_S, Predictions
from epp.simulator.model import ServedModel
from epp.sources.engine_metrics import VLLM, PageReader
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Notes, Rig
from tests.integration.kv_faults.bench import Bench
from tests.integration.kv_faults.conftest import CONFIG, ENGINE

POD = EndpointId("pod-0")


class Told(Notes):
    """Keeps alarms and comparisons as well."""

    def __init__(self) -> None:
        super().__init__()
        self.alarms: list[ParityLoss] = []
        self.counted: list[tuple[int, int]] = []

    def parity_lost(self, loss: ParityLoss) -> None:
        self.alarms.append(loss)

    def hits_counted(self, endpoint: EndpointId, expected: int, found: int) -> None:
        self.counted.append((expected, found))


class Picker:
    """Sends prompts to the first pod, on a clock that runs ahead, and reads its metrics after each."""

    def __init__(self, model: ServedModel) -> None:
        self.told = Told()
        self._now = 0.0
        self._monitor = ParityMonitor(self.told, stale=lambda endpoint: self.bench.rig.source.distrust(endpoint, "hits_are_not_found"))
        predictions = Predictions(lambda: self._now, outcomes=self._monitor, prefill_ended=lambda _: None)
        # Nothing but the alarm makes epp ask for what it missed.
        rig = Rig(notes=self.told, predictions=predictions, timing=replace(QUICK, check_s=1000.0))
        self.bench = Bench(replace(CONFIG, engine=replace(ENGINE, num_blocks=800)), model=model, rig=rig)
        self._reader = PageReader(VLLM)
        self._metrics: EndpointMetrics = NEVER_SCRAPED
        self._ids = map(str, itertools.count())

    async def ask(self, prompt: list[int], *, heard: bool = True) -> None:
        """One request, from its decision until it is settled; `heard`: its events come."""
        index, decision = self.bench.rig.index, DecisionId(next(self._ids))
        hits = index.match(TokenizedRequest(TokenState.EXACT, [prompt]), [POD], self._now)
        index.predict(hits, POD, decision, "tiny", self._now, 0.0)
        await self.bench.ask(prompt)
        if heard:
            await eventually(lambda: self.bench.blocks_credited(0) == len(self.bench.pod.engine.pool.cached))
        index.answer_ended(decision)
        self._now += SETTLE_S + 0.1
        index.sweep(self._now)
        page = self.bench.pod.metrics.render(self.bench.pod.engine).encode()
        self._metrics, _ = self._reader.read(page, rank=0, before=self._metrics, now=self._now)
        self._monitor.scraped(POD, self._metrics)
        self._now += 0.1


@pytest.fixture
async def picker(model: ServedModel) -> AsyncIterator[Picker]:
    """One that hears the pods."""
    picker = Picker(model)
    await picker.bench.start()
    yield picker
    await picker.bench.stop()


async def test_an_index_that_missed_a_reset_is_noticed_by_counters_and_heals(picker: Picker) -> None:
    """Within as many requests as one comparison takes; a replay then brings the truth."""
    bench = picker.bench
    prompts = [bench.traffic.text(80) for _ in range(REQUESTS)]
    for prompt in prompts * 2:
        await picker.ask(prompt)
    assert picker.told.counted == [(REQUESTS * 48, REQUESTS * 64)]
    assert not picker.told.alarms

    await bench.go_wrong(drop={"share": 1.0})
    await bench.call("POST", "/reset_prefix_cache")
    for prompt in prompts:
        await picker.ask(prompt, heard=False)
    assert [(loss.cause, loss.endpoints, loss.wrong, loss.of) for loss in picker.told.alarms] == [("index", (POD,), REQUESTS, REQUESTS)]
    assert picker.told.errors == [(POD, "hits_are_not_found")]
    await eventually(bench.is_right)
