"""An engine that makes other tokens of a chat than its published files tell: the parity monitor says so, and why.

Requests are picked by hand, with the tokens a picker makes of those files; what the engine makes of them comes over its events.
"""

import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from epp.domain import DecisionId, EndpointId, ParityLoss, TokenizedRequest, TokenState
from epp.kvcache.parity import ParityMonitor
from epp.kvcache.predictions import SETTLE_S, Predictions
from epp.simulator.model import ServedModel
from epp.testing.waiting import eventually
from tests.integration.kv_events.publisher import QUICK, Notes, Rig
from tests.integration.kv_faults.bench import Bench
from tests.integration.kv_faults.conftest import CONFIG
from tests.unit.simulator.recording import DATA

TEMPLATE = (DATA / "model" / "chat_template.jinja").read_text()
SYSTEM = "You are a patient assistant who answers every question about sheep, clouds and trains in full sentences. " * 4
WORDS = SYSTEM.split()


class Alarms(Notes):
    """Keeps what the monitor told as well."""

    def __init__(self) -> None:
        super().__init__()
        self.alarms: list[tuple[str, tuple[EndpointId, ...], str]] = []

    def parity_lost(self, loss: ParityLoss) -> None:
        self.alarms.append((loss.model, tuple(loss.endpoints), loss.detail))


class Picker:
    """Predicts what the bench's pods will store, on a clock that runs ahead where answers have to settle."""

    def __init__(self, model: ServedModel) -> None:
        self.told = Alarms()
        self._now = 0.0
        predictions = Predictions(lambda: self._now, outcomes=ParityMonitor(self.told), prefill_ended=lambda *_: None)
        self.bench = Bench(CONFIG, model=model, rig=Rig(notes=self.told, predictions=predictions, timing=replace(QUICK, check_s=0.1)))
        self._index = self.bench.rig.index
        self._decisions = map(str, itertools.count())
        self._rng = random.Random(3)

    async def chat(self, pod: int = 0) -> None:
        """One request, from its decision until it is settled."""
        decision, endpoint = DecisionId(next(self._decisions)), EndpointId(f"pod-{pod}")
        text = SYSTEM + " ".join(self._rng.choices(WORDS, k=60))
        tokens = self.bench.tokens_of_chat(text)
        hits = self._index.match(TokenizedRequest(TokenState.EXACT, [tokens]), [endpoint], self._now)
        self._index.predict(hits, endpoint, decision, "tiny", self._now, 0.0)
        await self.bench.chat(text, pod)
        await eventually(lambda: self.bench.blocks_credited(pod) == len(self.bench.pods[pod].engine.pool.cached))
        self._index.answer_ended(decision)
        self._now += SETTLE_S + 0.1
        self._index.sweep(self._now)


@pytest.fixture
async def picker(model: ServedModel) -> AsyncIterator[Picker]:
    """One that hears two pods."""
    picker = Picker(model)
    await picker.bench.start()
    yield picker
    await picker.bench.stop()


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"template": TEMPLATE.replace("bos_token", "bos_token + 'Today is Monday. '")}, "chat template or tokenizer"),
        ({"skip": 1, "prepend": [77, 78, 79]}, "chat template or tokenizer: prompts differ from token 0 on"),
        ({"prepend": [1]}, "beginning-of-sequence token"),
        ({"skip": 1}, "beginning-of-sequence token"),
        ({"lora_name": "other"}, "LoRA name"),
        ({"cache_salt": "pepper"}, "cache salt"),
    ],
    ids=["template", "header", "BOS too much", "BOS missing", "LoRA", "salt"],
)
async def test_the_alarm_names_pod_and_cause_within_20_requests(picker: Picker, wrong: dict[str, object], cause: str) -> None:
    """And it is one alarm, not one a request."""
    await picker.bench.go_wrong(tokens=wrong)
    for _ in range(20):
        await picker.chat()
    (alarm,) = picker.told.alarms
    assert alarm[:2] == ("tiny", ("pod-0",))
    assert cause in alarm[2]


async def test_no_alarm_where_batches_go_wrong_and_tokens_are_right(picker: Picker) -> None:
    """Losses, duplicates, delays, evictions and requests past the picker contradict nothing."""
    await picker.bench.go_wrong(drop={"share": 0.1}, duplicate={"share": 0.3}, delay={"share": 0.2, "seconds": 0.01})
    for _ in range(25):
        await picker.bench.ask(picker.bench.traffic.prompt(), answer=20)
        await picker.chat(pod=0)
        await picker.chat(pod=1)
    assert picker.told.gaps
    assert not picker.told.alarms
