"""What an engine is expected to do with a request's prompt, held against what its events show it did.

A prediction is the chain of block keys of one prompt that went to one endpoint, of which the leading ones are known to be
cached there. The engine then stores the others, in order: each of them seen confirms the tokens, the template, the LoRA
name, the salt and the block size they were made of; the last one ends the prefill. If none of them comes, and a chain comes
instead that starts where ours should go on and differs inside the prompt, the prediction is contradicted, and the difference
names the likely cause. A chain that another prediction explains says nothing; neither do blocks beyond the prompt.

What is predicted as cached is confirmed by not being stored again, from the first block to the last it should find there: an
engine that does has lost its cache without a word, unless it said that it evicted one of these two, or another request was
to compute this chain from its first block on. So a request whose blocks are all cached expects nothing: it is confirmed, and
the end of its prefill shows nowhere. Only blocks that events confirmed count as cached: one that is speculated may be as
wrong as the tokens it was made of. One found block alone tells nothing: speculative decoding leaves out the last one, and a
prompt of one block is always computed.

Settled some time after the answer ended, because engines publish a step's events with its outputs. Used by `index`, on the
event loop; `now` is injected. Cost: a lookup for each block an endpoint stores while predictions are open there.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import Final, Protocol

from epp.domain import BlockKey, DecisionId, EndpointId, Usage
from epp.kvcache.divergence import LEADING_TOKENS, Cause, Divergence, Prompt, compare, resemblance
from epp.kvcache.events import BlockStored

# After the end of its answer nothing is stored for a request any more, but its last events may still be on their way.
SETTLE_S: Final = 2.0
# Predictions watched at a time, and what they may hold of prompts whose prefill has not been seen to end: requests beyond
# are not watched.
MAX_OPEN: Final = 10_000
MAX_BYTES: Final = 32 << 20
# Predictions that one chain nobody expected is compared with; the oldest, because engines take requests in order.
_COMPARED: Final = 16


class Verdict(Enum):
    """How a prediction came out; a label value of epp_parity_predictions_total."""

    CONFIRMED = "confirmed"
    CONTRADICTED = "contradicted"
    UNSEEN = "unseen"
    """Nothing was stored for it: events were lost, the request never ran, or its endpoint publishes none."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome of one prediction."""

    endpoint: EndpointId
    model: str
    verdict: Verdict
    divergence: Divergence | None = None
    """Where it was contradicted."""
    silent: bool = False
    """Its endpoint answered it, had blocks to store, and has not told of a single one since, of whatever request."""
    at: float = 0.0
    """Monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request its endpoint has answered, as far as it was foreseen and as far as the answer tells."""

    endpoint: EndpointId
    model: str
    decided_at: float
    ended_at: float
    """Both in monotonic seconds."""
    prompt_tokens: int
    hit_tokens: int
    """Those of them it was taken to hold: what events confirmed, except a last block that is always computed."""
    block_size: int
    said: Usage | None
    """Without the numbers that could not be compared."""

    @property
    def foreseen(self) -> int:
        """Hit tokens the engine finds at least, if it holds them: with speculative decoding it leaves out a block (spec/kv.md 8 rule 12)."""
        return max(0, self.hit_tokens - self.block_size)


@dataclass(frozen=True, slots=True)
class PrefillEnded:
    """The last full block of a prompt was stored. A prompt that was cached whole stores none, so its prefill ends unseen."""

    decision_id: DecisionId
    endpoint: EndpointId
    model: str
    at: float
    """When its event was applied, in monotonic seconds."""
    seconds: float
    """Since the decision."""


class Outcomes(Protocol):
    """Who is told how predictions come out."""

    def settled(self, settled: Settled) -> None:
        """Once a prediction."""

    def answered(self, answered: Answered) -> None:
        """Once a prediction at most, before it is settled."""

    def unusable(self, endpoint: EndpointId, reason: str) -> None:
        """What the endpoint published could not be read, or not be counted."""

    def forgotten(self, endpoint: EndpointId) -> None:
        """The endpoint restarted, cleared its cache or is gone."""


@dataclass(slots=True, eq=False)
class _Prediction:
    decision_id: DecisionId
    endpoint: EndpointId
    model: str
    prompt: Prompt
    """Empty once all its blocks were seen (`release`)."""
    tokens: int
    hit_tokens: int
    """Those it is taken to find."""
    ends: tuple[BlockKey, ...]
    """The first and the last block it is taken to find; none where there are no two."""
    anew: BlockKey | None
    """Its first block, if it computes that itself."""
    opened_at: float
    next: int
    """The block expected next; that after the last one where nothing is."""
    heard: int
    """Events its endpoint's blocks came with until then."""
    served: bool = True
    """Its endpoint answered it, as far as anybody told. What was given up while it waited is contradicted by nothing."""
    divergence: Divergence | None = None
    contradicted: bool = False
    """An event that stored some of its blocks went on otherwise."""
    first_again: bool = False
    again: bool = False
    """The first block, and the last it was taken to find, were stored again."""

    @property
    def verdict(self) -> Verdict:
        if self.again:
            return Verdict.CONTRADICTED
        if self.next >= len(self.prompt.chain):
            return Verdict.CONFIRMED
        if self.contradicted and self.served:
            return Verdict.CONTRADICTED
        if self.next > self.prompt.cached:
            return Verdict.CONFIRMED
        return Verdict.CONTRADICTED if self.divergence is not None and self.served else Verdict.UNSEEN

    def stored_again(self, key: BlockKey) -> None:
        """One of its ends was."""
        ends = self.ends
        self.first_again = self.first_again or key == ends[0]
        self.again = self.again or (self.first_again and key == ends[-1])


class _Pod:
    """The predictions of one endpoint that expect something, to be stored or not to be."""

    __slots__ = ("after", "anew", "expecting", "found", "puzzling")

    def __init__(self) -> None:
        self.expecting: dict[BlockKey, list[_Prediction]] = {}
        """By the block expected next."""
        self.after: dict[BlockKey, list[_Prediction]] = {}
        """By the block before that one."""
        self.found: dict[BlockKey, list[_Prediction]] = {}
        """By the first block, and by the last, that they are taken to find."""
        self.anew: dict[BlockKey, int] = {}
        """How many compute their first block themselves, by that; any of them may store it, whether or not another has."""
        self.puzzling: dict[_Prediction, None] = {}
        """Those of which no block was stored, and nothing that may have come in their place; oldest first."""

    def watch(self, prediction: _Prediction) -> None:
        for key in prediction.ends:
            self.found.setdefault(key, []).append(prediction)
        if prediction.anew is not None:
            self.anew[prediction.anew] = self.anew.get(prediction.anew, 0) + 1

    def unwatch(self, prediction: _Prediction) -> None:
        for key in prediction.ends:
            _drop(self.found, key, prediction)

    def settle(self, prediction: _Prediction) -> None:
        self.unwatch(prediction)
        if prediction.anew is not None:
            left = self.anew.pop(prediction.anew, 1) - 1
            if left:
                self.anew[prediction.anew] = left
        if prediction.next < len(prediction.prompt.chain):
            self.discard(prediction)

    def add(self, prediction: _Prediction) -> None:
        chain, at = prediction.prompt.chain, prediction.next
        self.expecting.setdefault(chain[at], []).append(prediction)
        if at:
            self.after.setdefault(chain[at - 1], []).append(prediction)
        if at == prediction.prompt.cached:
            self.puzzling[prediction] = None

    def discard(self, prediction: _Prediction) -> None:
        chain, at = prediction.prompt.chain, prediction.next
        _drop(self.expecting, chain[at], prediction)
        if at:
            _drop(self.after, chain[at - 1], prediction)
        self.puzzling.pop(prediction, None)


def _drop(lists: dict[BlockKey, list[_Prediction]], key: BlockKey, prediction: _Prediction) -> None:
    found = lists.get(key, [])
    if prediction in found:
        found.remove(prediction)
        if not found:
            del lists[key]


class Predictions:
    """All open predictions of one index."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        outcomes: Outcomes,
        prefill_ended: Callable[[PrefillEnded], None],
    ) -> None:
        """`now` gives monotonic seconds. `prefill_ended` is called once a prefill that is seen to end while its answer is under way."""
        self._now = now
        self._outcomes = outcomes
        self._prefill_ended = prefill_ended
        self._pods: dict[EndpointId, _Pod] = {}
        self._open: dict[DecisionId, _Prediction] = {}
        self._due: deque[tuple[float, _Prediction]] = deque()
        """Those whose answer has ended, in order."""
        self._heard: dict[EndpointId, int] = {}
        """Events with blocks of each endpoint."""
        self._bytes = 0
        """What the prompts of all hold."""

    def __len__(self) -> int:
        return len(self._open)

    def is_open(self, decision_id: DecisionId) -> bool:
        """Whether the answer has not ended and the prefill has not been seen to end."""
        prediction = self._open.get(decision_id)
        return prediction is not None and prediction.next < len(prediction.prompt.chain)

    def add(self, decision_id: DecisionId, endpoint: EndpointId, model: str, prompt: Prompt) -> None:
        """A request goes to an endpoint. A prompt without a full block predicts nothing."""
        if not prompt.chain or len(self._open) >= MAX_OPEN or self._bytes + prompt.bytes > MAX_BYTES:
            return
        chain, found = prompt.chain, prompt.found
        ends = (chain[0], chain[found - 1]) if found > 1 else ()
        prediction = self._open[decision_id] = _Prediction(
            *(decision_id, endpoint, model, prompt, prompt.tokens, found * prompt.block_size, ends, None if prompt.cached else chain[0]),
            *(self._now(), prompt.cached, self._heard.get(endpoint, 0)),
        )
        self._bytes += prompt.bytes
        pod = self._pods.setdefault(endpoint, _Pod())
        pod.watch(prediction)
        if prompt.cached < len(chain):
            pod.add(prediction)
        else:
            self._release(prediction)

    def stored(self, endpoint: EndpointId, parent: BlockKey, event: BlockStored, keys: Sequence[BlockKey]) -> None:
        """The endpoint stored these blocks, whose keys are ours of what the event says, after `parent`."""
        self.heard(endpoint)
        pod = self._pods.get(endpoint)
        if pod is None:
            return
        expecting, found, anew = pod.expecting, pod.found, pod.anew
        explained, cut_short = False, []
        for at, key in enumerate(keys):
            for prediction in tuple(expecting.get(key, ())):
                reached = self._advance(pod, prediction, keys, at)
                if reached < len(keys) and prediction.next < len(prediction.prompt.chain):
                    cut_short.append((prediction, reached))
                else:
                    explained = True
            if key in found and key not in anew:
                for prediction in found[key]:
                    prediction.stored_again(key)
        if not explained:
            for prediction, reached in cut_short:
                prediction.contradicted = True
                _note(prediction, compare(prediction.prompt, event, prediction.next, reached))
            if not cut_short:
                self._note_stranger(pod, parent, event)

    def _note_stranger(self, pod: _Pod, parent: BlockKey, event: BlockStored) -> None:
        """A chain that no prediction explains: those that it may have come in place of keep how it differs."""
        beside = () if event.parent is None else tuple(pod.after.get(parent, ()))
        for prediction in beside[:_COMPARED]:
            _note(prediction, compare(prediction.prompt, event, prediction.next, 0))
        # Blocks of answers are stored one by one, and are far too many to be looked at.
        if beside or len(event.hashes) * event.block_size < 2 * LEADING_TOKENS:
            return
        for prediction in tuple(islice(pod.puzzling, _COMPARED)):
            if event.parent is not None:
                divergence = resemblance(prediction.prompt, event)
            else:
                divergence = compare(prediction.prompt, event, 0, 0) if prediction.next == 0 else None
            if divergence is not None:
                _note(prediction, divergence)
                del pod.puzzling[prediction]

    def removed(self, endpoint: EndpointId, keys: Sequence[BlockKey]) -> None:
        """The endpoint evicted these blocks, and said so: if it does not find them, and stores them again, it is right."""
        pod = self._pods.get(endpoint)
        if pod is not None and pod.found:
            for key in keys:
                for prediction in tuple(pod.found.get(key, ())):
                    pod.unwatch(prediction)
                    prediction.hit_tokens = 0

    def heard(self, endpoint: EndpointId) -> None:
        """The endpoint stored blocks nobody looks at: it is not silent."""
        self._heard[endpoint] = self._heard.get(endpoint, 0) + 1

    def unusable(self, endpoint: EndpointId, reason: str) -> None:
        """An event of the endpoint could not be read, or not be counted."""
        self._outcomes.unusable(endpoint, reason)

    def ended(self, decision_id: DecisionId, *, served: bool, said: Usage | None) -> None:
        """The answer has ended. `served`: by this endpoint, and well; `said`: what can be compared of its usage."""
        prediction = self._open.pop(decision_id, None)
        if prediction is None:
            return
        now = self._now()
        prediction.served = served
        self._due.append((now + SETTLE_S, prediction))
        if served:
            size = prediction.prompt.block_size
            self._outcomes.answered(
                Answered(
                    *(prediction.endpoint, prediction.model, prediction.opened_at, now),
                    prediction.tokens,
                    prediction.hit_tokens,
                    size,
                    said,
                )
            )

    def forget(self, endpoint: EndpointId) -> None:
        """The endpoint restarted, cleared its cache or is gone: what it was not seen to store by now cannot be told any more."""
        self._pods.pop(endpoint, None)
        self._heard.pop(endpoint, None)
        gone = [prediction for prediction in self._open.values() if prediction.endpoint == endpoint]
        for prediction in gone:
            del self._open[prediction.decision_id]
        gone += [prediction for _, prediction in self._due if prediction.endpoint == endpoint]
        self._due = deque(due for due in self._due if due[1].endpoint != endpoint)
        for prediction in gone:
            self._bytes -= prediction.prompt.bytes
            confirmed = prediction.verdict is Verdict.CONFIRMED
            self._outcomes.settled(Settled(endpoint, prediction.model, Verdict.CONFIRMED if confirmed else Verdict.UNSEEN))
        self._outcomes.forgotten(endpoint)

    def settle(self, now: float) -> None:
        """Settle what is due. To be called every second or so."""
        while self._due and self._due[0][0] <= now:
            prediction = self._due.popleft()[1]
            verdict, endpoint = prediction.verdict, prediction.endpoint
            pod = self._pods.get(endpoint)
            if pod is not None:
                pod.settle(prediction)
                if not (pod.expecting or pod.found or pod.anew):
                    del self._pods[endpoint]
            self._bytes -= prediction.prompt.bytes
            divergence = prediction.divergence if verdict is Verdict.CONTRADICTED else None
            if prediction.again:
                divergence = Divergence(Cause.INDEX, 0)
            silent = verdict is Verdict.UNSEEN and prediction.served and self._heard.get(endpoint, 0) == prediction.heard
            self._outcomes.settled(Settled(endpoint, prediction.model, verdict, divergence, silent=silent, at=now))

    def _advance(self, pod: _Pod, prediction: _Prediction, keys: Sequence[BlockKey], at: int) -> int:
        """Blocks the prediction expects were stored, from position `at` of an event on; up to which one."""
        pod.discard(prediction)
        chain, position = prediction.prompt.chain, prediction.next
        while position < len(chain) and at < len(keys) and chain[position] == keys[at]:
            position += 1
            at += 1
        prediction.next = position
        if position < len(chain):
            pod.add(prediction)
            return at
        self._release(prediction)
        if prediction.decision_id in self._open:
            now = self._now()
            self._prefill_ended(
                PrefillEnded(prediction.decision_id, prediction.endpoint, prediction.model, now, now - prediction.opened_at)
            )
        return at

    def _release(self, prediction: _Prediction) -> None:
        """All its blocks were seen: nothing is compared with its prompt any more."""
        self._bytes -= prediction.prompt.bytes
        prediction.prompt = replace(prediction.prompt, chain=(), packed=b"", cached=0)


def _note(prediction: _Prediction, divergence: Divergence | None) -> None:
    """Keep it if it says more than what is kept."""
    kept = prediction.divergence
    if divergence is not None and (kept is None or (kept.cause is Cause.TEMPLATE and kept.token <= divergence.token)):
        prediction.divergence = divergence
