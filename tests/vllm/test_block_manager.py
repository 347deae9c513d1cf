"""Parity against vLLM's own KV-cache manager, without a model (tools/vllm/block_manager.py): whatever it does, it is right, and no alarm says otherwise.

Index, predictions and monitor are the real ones. Decisions are made on what is known when they are; events come some steps late.
"""

import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from epp.domain import DecisionId, EndpointId, ParityLoss, TokenizedRequest, TokenState, Usage
from epp.kvcache.events import decode
from epp.kvcache.index import PrefixIndex
from epp.kvcache.parity import ParityMonitor
from epp.kvcache.predictions import SETTLE_S, Predictions
from epp.reporter import Reporter
from tests.vllm.launch import ROOT, VLLM

POD: Final = EndpointId("default/engine")
FULL: Final = ["full", 16, 0]
WINDOW: Final = ["window", 16, 64]
REQUESTS: Final = 400


@dataclass
class Told(Reporter):
    """What was said of it."""

    verdicts: Counter[str] = field(default_factory=Counter)
    lost: list[ParityLoss] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def parity_settled(self, endpoint: EndpointId, model: str, verdict: str) -> None:
        self.verdicts[verdict] += 1

    def parity_lost(self, loss: ParityLoss) -> None:
        self.lost.append(loss)

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        self.errors[reason] += 1


@dataclass
class Traffic:
    """Families of prompts with a common beginning; a tenth goes past us."""

    families: int = 12
    beginning: int = 200
    own: int = 60
    burst: int = 6
    """Requests between two times that the engine goes on."""
    logprobs: float = 0.0
    salts: tuple[str | None, ...] = (None,)


class Rig:
    """An engine's manager, and one picker that sends it requests."""

    def __init__(self, manager: "subprocess.Popen[str]", **settings: object) -> None:
        assert manager.stdin is not None
        manager.stdin.write(json.dumps(settings) + "\n")
        self._manager = manager
        self._now = 0.0
        self.told = Told()
        self.stale: list[EndpointId] = []
        self.preempted = self.held = 0
        monitor = ParityMonitor(self.told, stale=self.stale.append)
        predictions = Predictions(lambda: self._now, outcomes=monitor, prefill_ended=lambda _: None)
        self.index = PrefixIndex(self.told, default_block_size=16, predictions=predictions)
        self._late: list[bytes] = []
        self._sizes: dict[str, int] = {}

    def run(self, traffic: Traffic, seed: int) -> None:
        """All requests, to their ends."""
        rng = random.Random(seed)
        families = [[rng.randrange(90_000) for _ in range(traffic.beginning)] for _ in range(traffic.families)]
        queued: list[list[Any]] = []
        for number in range(REQUESTS):
            tokens = rng.choice(families) + [rng.randrange(90_000) for _ in range(rng.randrange(5, traffic.own))]
            logprobs, salt = rng.random() < traffic.logprobs, rng.choice(traffic.salts)
            name = str(number)
            if rng.random() < 0.9:
                self._decide(name, tokens, logprobs=logprobs, salt=salt)
            queued.append([name, tokens, rng.randrange(1, 40), logprobs, salt])
            if rng.random() < 1 / traffic.burst:
                self._go_on(queued, rng.randrange(1, 30), late=rng.random() < 0.3)
                queued = []
        while self._go_on(queued, 50, late=False):
            queued = []
        self._now += SETTLE_S
        self.index.sweep(self._now)

    def _decide(self, name: str, tokens: list[int], *, logprobs: bool, salt: str | None) -> None:
        request = TokenizedRequest(TokenState.EXACT, [tokens], cache_salt=salt)
        self._sizes[name] = len(tokens)
        hits = self.index.match(request, [POD], self._now)
        self.index.predict(hits, POD, DecisionId(name), "m", self._now, 0.0, reads_cache=not logprobs)

    def _go_on(self, queued: list[list[Any]], steps: int, *, late: bool) -> int:
        """So many steps; how many requests are under way then. `late`: the events come with those of the next time."""
        stdin, stdout = self._manager.stdin, self._manager.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([queued, steps]) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        self._late += map(bytes.fromhex, answer["payloads"])
        self._now += steps * 0.05
        if not late or answer["ended"]:
            for payload in self._late:
                self.index.apply(POD, 0, decode(payload))
            self._late.clear()
        for name, cached in answer["ended"].items():
            if (size := self._sizes.get(name)) is not None:
                self.index.answer_ended(DecisionId(name), said=Usage(prompt_tokens=size, cached_tokens=cached))
        self.index.sweep(self._now)
        self.preempted, self.held = answer["preempted"], answer["held"]
        left: int = answer["left"]
        return left


@pytest.fixture(scope="module")
def manager() -> "Iterator[subprocess.Popen[str]]":
    """Up, and gone after."""
    command = [VLLM / "bin" / "python", ROOT / "tools" / "vllm" / "block_manager.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    ("groups", "blocks", "speculates", "traffic"),
    [
        ([FULL], 2000, False, Traffic()),
        ([FULL], 150, False, Traffic()),
        ([FULL], 300, False, Traffic(families=30, burst=30)),
        ([FULL], 120, False, Traffic(burst=20, salts=(None, "a", "b"))),
        ([FULL], 2000, False, Traffic(logprobs=0.3)),
        ([FULL], 2000, True, Traffic()),
        ([FULL], 2000, True, Traffic(beginning=20, own=14)),
        ([FULL, WINDOW], 2000, False, Traffic()),
        ([FULL, WINDOW], 2000, False, Traffic(families=150)),
        ([FULL, WINDOW], 400, True, Traffic(families=60)),
        ([["full", 32, 0], WINDOW], 2000, False, Traffic(families=60)),
        ([WINDOW], 2000, False, Traffic()),
    ],
    ids=[
        "roomy",
        "preempting",
        "evicting under a long queue",
        "salts",
        "logprobs",
        "speculating",
        "speculating, one block in common",
        "hybrid",
        "hybrid, many families",
        "hybrid, speculating, evicting",
        "hybrid of two sizes",
        "windows only",
    ],
)
def test_what_vllm_does_with_its_blocks_contradicts_nothing(
    manager: "subprocess.Popen[str]",
    groups: list[list[Any]],
    blocks: int,
    speculates: bool,  # noqa: FBT001  # a parameter of the test
    traffic: Traffic,
) -> None:
    """No alarm, nothing learnt anew, at most three in a hundred contradicted; what can be confirmed is, and the index has as many blocks as the engine."""
    rig = Rig(manager, groups=groups, blocks=blocks, speculates=speculates, budget=256)
    rig.run(traffic, seed=1)
    told = rig.told
    assert told.lost == []
    assert rig.stale == []
    assert told.errors == {}
    assert told.verdicts["contradicted"] <= 0.03 * told.verdicts.total()
    assert told.verdicts["confirmed" if groups != [WINDOW] else "unseen"] >= 0.95 * told.verdicts.total()
    held = rig.held if groups != [WINDOW] else 0
    if len({size for _, size, _ in groups}) == 1:
        assert rig.index.blocks(POD) == held
    else:  # halves of blocks can be found, too, which count when they are whole
        assert 0.7 * held < rig.index.blocks(POD) < held
    assert rig.preempted or blocks > 150
