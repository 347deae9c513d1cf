"""What an engine is expected to do with a request's prompt, held against what its events show it did.

A prediction is the chain of block keys of one prompt that went to one endpoint, of which the leading ones are known to be
cached there. The engine then stores the others, in order: each of them seen confirms the tokens, the template, the LoRA
name, the salt and the block size they were made of; the last one ends the prefill. If none of them comes, and a chain comes
instead that starts where ours should go on and differs inside the prompt, the prediction is contradicted, and the difference names
the likely cause. A chain that another prediction explains says nothing; neither do blocks beyond the prompt.

What is predicted as cached is confirmed by not being stored again, so a request whose blocks are all cached expects
nothing: it is confirmed, and the end of its prefill shows nowhere. Only blocks that events confirmed count as cached: one
that is speculated may be as wrong as the tokens it was made of.

Settled some time after the answer ended, because engines publish a step's events with its outputs. Used by `index`, on the
event loop; `now` is injected. Cost: a lookup for each block an endpoint stores while predictions are open there.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import Final

from epp.domain import BlockKey, DecisionId, EndpointId
from epp.kvcache.events import BlockStored
from epp.kvcache.keys import TOKEN_BYTES, Extras

# After the end of its answer nothing is stored for a request any more, but its last events may still be on their way.
SETTLE_S: Final = 2.0
# Predictions watched at a time, and what they may hold of prompts whose prefill has not been seen to end: requests beyond
# are not watched.
MAX_OPEN: Final = 10_000
MAX_BYTES: Final = 32 << 20
_KEY_BYTES: Final = 40
# A chain that shares so many tokens with a prompt is about this prompt (spec/kv.md 8).
LEADING_TOKENS: Final = 16
# Predictions that one chain nobody expected is compared with; the oldest, because engines take requests in order.
_COMPARED: Final = 16
# Tokens kept of a prompt to tell where it differs.
_KEPT_TOKENS: Final = 4096


class Verdict(Enum):
    """How a prediction came out; a label value of epp_parity_predictions_total."""

    CONFIRMED = "confirmed"
    CONTRADICTED = "contradicted"
    UNSEEN = "unseen"
    """Nothing was stored for it: events were lost, the request never ran, or its endpoint publishes none."""


class Cause(Enum):
    """Why a prompt is likely to differ from what the engine made of it."""

    TEMPLATE = "chat template or tokenizer"
    BOS = "beginning-of-sequence token"
    LORA = "LoRA name"
    SALT = "cache salt"
    MEDIA = "hashes of media"
    BLOCK_SIZE = "block size"
    EARLIER = "something at the beginning of the prompt"
    """Seen on requests whose beginning the engine had cached, in its own way."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where an engine's chain differs from the one that was expected."""

    cause: Cause
    token: int
    """First token of the prompt that differs; where tokens are equal, the beginning of the block whose key differs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as its engine is expected to see it."""

    chain: Sequence[BlockKey]
    """Keys of its full blocks."""
    packed: bytes
    """All its token ids (keys.pack_tokens)."""
    block_size: int
    lora: str | None
    extras: Sequence[Extras]
    """Of its first blocks."""
    cached: int
    """Leading blocks that events confirmed at the endpoint."""

    @property
    def bytes(self) -> int:
        """What it holds."""
        return len(self.packed) + len(self.chain) * _KEY_BYTES


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome of one prediction."""

    endpoint: EndpointId
    model: str
    verdict: Verdict
    divergence: Divergence | None = None
    """Where it was contradicted."""


@dataclass(slots=True, eq=False)
class _Prediction:
    decision_id: DecisionId
    endpoint: EndpointId
    model: str
    prompt: Prompt
    opened_at: float
    next: int
    """The block expected next; that after the last one where nothing is."""
    divergence: Divergence | None = None
    contradicted: bool = False
    """An event that stored some of its blocks went on otherwise."""

    @property
    def verdict(self) -> Verdict:
        if self.next >= len(self.prompt.chain):
            return Verdict.CONFIRMED
        if self.contradicted:
            return Verdict.CONTRADICTED
        if self.next > self.prompt.cached:
            return Verdict.CONFIRMED
        return Verdict.UNSEEN if self.divergence is None else Verdict.CONTRADICTED


class _Pod:
    """The predictions of one endpoint that expect something."""

    __slots__ = ("after", "expecting", "puzzling")

    def __init__(self) -> None:
        self.expecting: dict[BlockKey, list[_Prediction]] = {}
        """By the block expected next."""
        self.after: dict[BlockKey, list[_Prediction]] = {}
        """By the block before that one."""
        self.puzzling: dict[_Prediction, None] = {}
        """Those of which no block was stored, and nothing that may have come in their place; oldest first."""

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
        settled: Callable[[Settled], None],
        prefill_ended: Callable[[DecisionId, EndpointId, float, float], None],
    ) -> None:
        """`now` gives monotonic seconds. `prefill_ended` is told the decision, its endpoint, the time now, and seconds since the decision."""
        self._now = now
        self._settled = settled
        self._prefill_ended = prefill_ended
        self._pods: dict[EndpointId, _Pod] = {}
        self._open: dict[DecisionId, _Prediction] = {}
        self._due: deque[tuple[float, _Prediction]] = deque()
        """Those whose answer has ended, in order."""
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
        self._bytes += prompt.bytes
        prediction = self._open[decision_id] = _Prediction(decision_id, endpoint, model, prompt, self._now(), prompt.cached)
        if prompt.cached < len(prompt.chain):
            self._pods.setdefault(endpoint, _Pod()).add(prediction)
        else:
            self._release(prediction)

    def stored(self, endpoint: EndpointId, parent: BlockKey, event: BlockStored, keys: Sequence[BlockKey]) -> None:
        """The endpoint stored these blocks, whose keys are ours of what the event says, after `parent`."""
        pod = self._pods.get(endpoint)
        if pod is None:
            return
        expecting = pod.expecting
        explained, cut_short = False, []
        for at, key in enumerate(keys):
            for prediction in tuple(expecting.get(key, ())):
                reached = self._advance(pod, prediction, keys, at)
                if reached < len(keys) and prediction.next < len(prediction.prompt.chain):
                    cut_short.append((prediction, reached))
                elif at == 0:
                    explained = True
        if not explained:
            for prediction, reached in cut_short:
                prediction.contradicted = True
                _note(prediction, _divergence(prediction.prompt, event, prediction.next, reached))
            if not cut_short:
                self._note_stranger(pod, parent, event)
        if not expecting:
            del self._pods[endpoint]

    def _note_stranger(self, pod: _Pod, parent: BlockKey, event: BlockStored) -> None:
        """A chain that no prediction explains: those that it may have come in place of keep how it differs."""
        beside = () if event.parent is None else tuple(pod.after.get(parent, ()))
        for prediction in beside[:_COMPARED]:
            _note(prediction, _divergence(prediction.prompt, event, prediction.next, 0))
        # Blocks of answers are stored one by one, and are far too many to be looked at.
        if beside or len(event.hashes) * event.block_size < 2 * LEADING_TOKENS:
            return
        for prediction in tuple(islice(pod.puzzling, _COMPARED)):
            if event.parent is not None:
                divergence = _resemblance(prediction.prompt, event)
            else:
                divergence = _divergence(prediction.prompt, event, 0, 0) if prediction.next == 0 else None
            if divergence is not None:
                _note(prediction, divergence)
                del pod.puzzling[prediction]

    def ended(self, decision_id: DecisionId) -> None:
        """The answer has ended."""
        prediction = self._open.pop(decision_id, None)
        if prediction is not None:
            self._due.append((self._now() + SETTLE_S, prediction))

    def forget(self, endpoint: EndpointId) -> None:
        """The endpoint restarted, cleared its cache or is gone: nothing that was expected of it can be told any more."""
        self._pods.pop(endpoint, None)
        for decision_id in [prediction.decision_id for prediction in self._open.values() if prediction.endpoint == endpoint]:
            prediction = self._open.pop(decision_id)
            self._bytes -= prediction.prompt.bytes
            self._settled(Settled(endpoint, prediction.model, Verdict.UNSEEN))
        for _, prediction in self._due:
            if prediction.endpoint == endpoint:
                prediction.divergence, prediction.contradicted = None, False

    def settle(self, now: float) -> None:
        """Settle what is due. To be called every second or so."""
        while self._due and self._due[0][0] <= now:
            prediction = self._due.popleft()[1]
            pod = self._pods.get(prediction.endpoint)
            if pod is not None and prediction.next < len(prediction.prompt.chain):
                pod.discard(prediction)
            self._bytes -= prediction.prompt.bytes
            verdict = prediction.verdict
            divergence = prediction.divergence if verdict is Verdict.CONTRADICTED else None
            self._settled(Settled(prediction.endpoint, prediction.model, verdict, divergence))

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
        else:
            self._release(prediction)
            if prediction.decision_id in self._open:
                now = self._now()
                self._prefill_ended(prediction.decision_id, prediction.endpoint, now, now - prediction.opened_at)
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


def _divergence(prompt: Prompt, event: BlockStored, position: int, skip: int) -> Divergence | None:
    """How they differ; None where they have nothing to do with each other."""
    begin = position * prompt.block_size
    ours = prompt.packed[begin * TOKEN_BYTES : (begin + _KEPT_TOKENS) * TOKEN_BYTES]
    theirs = event.tokens[skip * event.block_size * TOKEN_BYTES :][: len(ours)]
    shared = _shared_tokens(ours, theirs)
    if shared >= min(event.block_size, prompt.block_size):
        return Divergence(_beside_tokens(prompt, event, position, skip), begin)
    leading = LEADING_TOKENS * TOKEN_BYTES
    if begin == 0 and (
        (len(theirs) > leading and theirs[TOKEN_BYTES:].startswith(ours[:leading]))
        or (len(ours) > leading and ours[TOKEN_BYTES:].startswith(theirs[:leading]))
    ):
        return Divergence(Cause.BOS, 0)
    if begin or shared >= LEADING_TOKENS or _have_text_in_common(ours, theirs):
        return Divergence(Cause.TEMPLATE, begin + shared)
    return None


def _have_text_in_common(ours: bytes, theirs: bytes) -> bool:
    """Whether some tokens from the second half of the one stand anywhere in the other: the same request, rendered otherwise."""
    length = min(len(ours), len(theirs)) // TOKEN_BYTES
    if length < 2 * LEADING_TOKENS:
        return False
    return any(
        theirs.find(ours[start * TOKEN_BYTES : (start + LEADING_TOKENS) * TOKEN_BYTES]) >= 0
        for start in (length // 2, length * 2 // 3, length - LEADING_TOKENS)
    )


def _resemblance(prompt: Prompt, event: BlockStored) -> Divergence | None:
    """A chain that goes on from one of the engine's own, which may be ours under another name: what its text tells; None: nothing.

    Where it begins in the engine's prompt is known only in whole blocks: a shift within a block tells whether a token more or
    less stands somewhere before.
    """
    tokens = len(prompt.packed) // TOKEN_BYTES
    width = LEADING_TOKENS * TOKEN_BYTES
    for start in (tokens - 2 * LEADING_TOKENS, tokens * 3 // 4, tokens // 2):
        at = event.tokens.find(prompt.packed[start * TOKEN_BYTES :][:width]) if start > 0 else -1
        if at < 0 or at % TOKEN_BYTES:
            continue
        shift = (at // TOKEN_BYTES - start) % event.block_size
        if event.lora != prompt.lora:
            return Divergence(Cause.LORA, 0)
        if event.block_size != prompt.block_size:
            return Divergence(Cause.BLOCK_SIZE, 0)
        return Divergence(Cause.BOS if shift in (1, event.block_size - 1) else Cause.EARLIER, 0)
    return None


def _beside_tokens(prompt: Prompt, event: BlockStored, position: int, skip: int) -> Cause:
    """What else enters a block's hash."""
    if event.block_size != prompt.block_size:
        return Cause.BLOCK_SIZE
    if event.lora != prompt.lora:
        return Cause.LORA
    theirs = event.extras[skip] if event.extras else ()
    ours = prompt.extras[position] if position < len(prompt.extras) else ()
    kinds = {extra[0] for extra in {*ours} ^ {*theirs}}
    return Cause.SALT if "salt" in kinds else Cause.MEDIA


def _shared_tokens(ours: bytes, theirs: bytes) -> int:
    """Leading tokens that are equal, by bisection."""
    low, high = 0, min(len(ours), len(theirs)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if ours[: middle * TOKEN_BYTES] == theirs[: middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
