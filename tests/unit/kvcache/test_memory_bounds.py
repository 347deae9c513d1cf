"""What requests leave behind in the index is bounded, however long their prompts are and however many of them wait."""

import pytest

from epp.domain import BlockKey, DecisionId, EndpointId
from epp.kvcache import predictions
from epp.kvcache.divergence import Prompt
from epp.kvcache.events import BlockStored
from epp.kvcache.keys import pack_tokens
from epp.kvcache.predictions import Answered, Predictions, Settled
from epp.kvcache.speculation import Speculations

A, B = EndpointId("ns/a"), EndpointId("ns/b")


class Verdicts:
    """Keeps how predictions were settled."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def settled(self, settled: Settled) -> None:
        self.said.append(settled.verdict.value)

    def answered(self, answered: Answered) -> None: ...

    def unusable(self, endpoint: EndpointId, reason: str) -> None: ...

    def forgotten(self, endpoint: EndpointId) -> None: ...


def chain(start: int, length: int) -> list[BlockKey]:
    return [BlockKey(key) for key in range(start, start + length)]


def test_the_oldest_speculation_goes_first_where_there_is_no_room() -> None:
    """A flood of long prompts costs the early ones their hits, not the picker its memory."""
    speculations = Speculations(max_blocks=100)
    for number in range(10):
        speculations.add(A if number % 2 else B, chain(number * 1000, 30), until=10.0 + number)
    held = [speculations.prefix(A if number % 2 else B, chain(number * 1000, 30), now=1.0) for number in range(10)]
    assert held == [0] * 7 + [30] * 3
    assert speculations.sweep(100.0, limit=1000) == 90


def test_what_a_later_prompt_shares_with_a_forgotten_one_stays() -> None:
    """System prompts are in nearly all of them."""
    speculations = Speculations(max_blocks=50)
    speculations.add(A, chain(0, 30), until=10.0)
    speculations.add(A, chain(0, 10) + chain(500, 20), until=11.0)
    assert speculations.prefix(A, chain(0, 30), now=1.0) == 10
    assert speculations.prefix(A, chain(0, 10) + chain(500, 20), now=1.0) == 30


def test_predictions_hold_prompts_only_until_their_prefill_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for which there is no room are not watched, and there is room again as soon as engines have stored a prompt."""
    length, size = 8, 4
    prompt = Prompt(chain(1, length), pack_tokens(list(range(length * size))), size, None, (), 0)
    monkeypatch.setattr(predictions, "MAX_BYTES", 3 * prompt.bytes)
    verdicts = Verdicts()
    watched = Predictions(lambda: 0.0, outcomes=verdicts, prefill_ended=lambda _: None)
    for number in range(5):
        watched.add(DecisionId(str(number)), A, "m", prompt)
    assert len(watched) == 3
    watched.stored(A, BlockKey(0), BlockStored([], None, prompt.packed, size), prompt.chain)
    for number in range(5, 10):
        watched.add(DecisionId(str(number)), A, "m", prompt)
    assert len(watched) == 6
    for number in range(10):
        watched.ended(DecisionId(str(number)), served=True, said=None)
    watched.settle(100.0)
    assert verdicts.said == ["confirmed"] * 3 + ["unseen"] * 3
    for number in range(10, 13):
        watched.add(DecisionId(str(number)), A, "m", prompt)
    assert len(watched) == 3


@pytest.mark.parametrize("stored", [0, 4, 8], ids=["nothing", "half of it", "all of it"])
@pytest.mark.parametrize("answered", [False, True], ids=["under way", "answered"])
@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
def test_a_prediction_gives_its_room_back_however_it_ends(
    *, stored: int, answered: bool, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each: neither a restart nor an answer takes it along, and what was seen stored by then is confirmed."""
    prompt = Prompt(chain(1, 8), pack_tokens(list(range(32))), 4, None, (), 0)
    monkeypatch.setattr(predictions, "MAX_BYTES", 3 * prompt.bytes)
    verdicts = Verdicts()
    watched = Predictions(lambda: 0.0, outcomes=verdicts, prefill_ended=lambda _: None)
    for number in range(3):
        watched.add(DecisionId(str(number)), A, "m", prompt)
    if stored:
        watched.stored(A, BlockKey(0), BlockStored([], None, prompt.packed[: stored * 16], 4), prompt.chain[:stored])
    if answered or not leaves:
        for number in range(3):
            watched.ended(DecisionId(str(number)), served=True, said=None)
    if leaves:
        watched.forget(A)
    watched.settle(100.0)
    assert verdicts.said == ["confirmed" if stored else "unseen"] * 3
    for number in range(10, 20):
        watched.add(DecisionId(str(number)), B, "m", prompt)
    assert len(watched) == 3
