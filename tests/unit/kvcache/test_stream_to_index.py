"""From an engine's steps to the index, over a network that loses, repeats and reorders, with restarts and replays in between.

The engine is the slow model in vllm_cache.py; between it and the index stand the sequence and the slices, as in the event source.
After healing the index equals the model block by block. That the counts of copies are right shows at the end, when the
engine evicts all it has, block by block, in its own order. An engine whose ring forgets may be known only in part; what
is known of it must still be true.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from epp.domain import EndpointId, TokenizedRequest, TokenState
from epp.kvcache.events import Batch, slices
from epp.kvcache.index import PrefixIndex
from epp.kvcache.sequence import Action, Apply, Clear, EventSequence, Replay, StreamState
from epp.reporter import Reporter
from tests.unit.kvcache.vllm_cache import Content, VllmCache

POD = EndpointId("ns/a")
BLOCKS = 12
SIZE = 2

# Few, so that they meet: whole blocks and not, in a row and apart.
texts = st.sampled_from([(1,), (1, 1), (1, 1, 1, 1), (1, 1, 2, 2), (1, 1, 1, 1, 1, 2), (2,) * 7, (2, 1) * 5])
prompts = st.tuples(texts, st.sampled_from([None, None, "adapter"]), st.sampled_from([None, None, "salt"]))


class Stream(RuleBasedStateMachine):
    """One engine, one listener."""

    ring = 10_000
    """Batches the engine can replay."""
    forgets = False

    def __init__(self) -> None:
        super().__init__()
        self.cache = VllmCache(BLOCKS, SIZE, seed=0)
        self.seen: set[Content] = set()
        self.clock = 0.0
        self.history: list[Batch] = []
        self.wire: list[tuple[int, Batch]] = []
        """Published, and still to arrive."""
        self.index = PrefixIndex(Reporter(), default_block_size=SIZE)
        self.sequence = EventSequence(replay=True)
        self.asked: int | None = None
        self.bad_answers = 0
        self.perform(self.sequence.connected())

    # --- the engine ------------------------------------------------------------------------------------------
    def publish(self) -> None:
        """The step ends; one without events publishes nothing."""
        if self.cache.step:
            self.clock += 1
            batch = Batch(self.clock, 0, self.cache.step)
            self.wire.append((len(self.history), batch))
            self.history.append(batch)
            self.cache.step = []

    @rule(prompt=prompts)
    def request(self, prompt: tuple[tuple[int, ...], str | None, str | None]) -> None:
        """Two at once may compute the same."""
        self.cache.start(*prompt)
        self.publish()

    @rule(data=st.data(), token=st.integers(1, 2), count=st.integers(1, 3))
    @precondition(lambda self: self.cache.running)
    def decode(self, data: st.DataObject, token: int, count: int) -> None:
        """Answers fill blocks, too."""
        request = data.draw(st.sampled_from(self.cache.running))
        for _ in range(count):
            self.cache.decode(request, token)
        self.publish()

    @rule(data=st.data())
    @precondition(lambda self: self.cache.running)
    def finish(self, data: st.DataObject) -> None:
        """Nothing is published for that."""
        self.cache.finish(data.draw(st.sampled_from(self.cache.running)))

    @rule()
    def reset(self) -> None:
        """The cache is cleared, if nothing runs."""
        self.cache.reset()
        self.publish()

    @rule()
    def restart(self) -> None:
        """Another process, which counts from 0 again; the connection breaks."""
        self.seen |= self.cache.seen
        self.cache = VllmCache(BLOCKS, SIZE, seed=self.cache.seed + 1)
        self.history, self.wire = [], []
        self.reconnect()

    # --- the network -----------------------------------------------------------------------------------------
    @rule(count=st.integers(1, 3))
    def deliver(self, count: int) -> None:
        """The next batches arrive."""
        for _ in range(min(count, len(self.wire))):
            self.perform(self.sequence.live(*self.wire.pop(0)))

    @rule(data=st.data())
    @precondition(lambda self: self.wire)
    def lose(self, data: st.DataObject) -> None:
        """One never arrives."""
        self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @rule(data=st.data())
    @precondition(lambda self: self.wire)
    def repeat(self, data: st.DataObject) -> None:
        """One arrives twice, at any time."""
        again = data.draw(st.sampled_from(self.wire))
        self.wire.insert(data.draw(st.integers(0, len(self.wire))), again)

    @rule(data=st.data())
    @precondition(lambda self: len(self.wire) > 1)
    def reorder(self, data: st.DataObject) -> None:
        """One overtakes the others."""
        self.wire.insert(0, self.wire.pop(data.draw(st.integers(1, len(self.wire) - 1))))

    @rule()
    def reconnect(self) -> None:
        """What was under way is lost."""
        self.wire = []
        self.asked = None
        self.sequence.disconnected()
        self.perform(self.sequence.connected())

    @rule(skip=st.sets(st.integers(0, 8), max_size=3), complete=st.booleans())
    @precondition(lambda self: self.asked is not None)
    def answer(self, skip: set[int], *, complete: bool) -> None:
        """The engine answers, leaving out batches, or falls silent in the middle; not always, for then it is given up."""
        complete = complete or self.asked is None or self.asked >= len(self.history)
        self.bad_answers = self.bad_answers + 1 if skip or not complete else 0
        if self.bad_answers > 1:
            self.reply()
            self.bad_answers = 0
        else:
            self.reply(skip=skip, complete=complete)

    @rule()
    def check(self) -> None:
        """Nothing was heard for a while."""
        self.perform(self.sequence.check())

    # --- the listener ----------------------------------------------------------------------------------------
    def perform(self, actions: list[Action]) -> None:
        """As the event source does."""
        for action in actions:
            match action:
                case Apply(batch):
                    for part in slices(batch, 2):
                        self.index.apply(POD, 0, part)
                case Clear():
                    self.index.clear(POD, 0)
                case Replay(start):
                    self.asked = start

    def reply(self, *, skip: set[int] = frozenset(), complete: bool = True) -> None:  # type: ignore[assignment]
        """Everything from the number asked for on that the ring still has; a socket is filled before it overruns."""
        start, self.asked = self.asked, None
        assert start is not None
        oldest = max(start, len(self.history) - self.ring)
        for seq, batch in list(enumerate(self.history))[oldest:]:
            if seq == oldest or seq not in skip:
                self.perform(self.sequence.replayed(seq, batch))
        self.perform(self.sequence.replay_ended(complete=complete))

    # --- the comparison --------------------------------------------------------------------------------------
    @rule()
    def heal(self) -> None:
        """One batch more arrives, and every question is answered."""
        self.wire = []
        # Something the engine cannot have cached, with room made for it.
        while not self.cache.start((int(self.clock) + 10, 0), None, None):
            self.cache.finish(self.cache.running[0])
        self.publish()
        self.deliver(1)
        while self.asked is not None:
            self.reply()
        self.compare()

    def compare(self) -> None:
        """Every content the engine ever had is found as far as it has it, and no more."""
        assert self.sequence.state is StreamState.LIVE or self.forgets
        self.seen |= self.cache.seen
        known, held = self.index.blocks(POD), len(self.cache.copies())
        for content in self.seen:
            lora, salt, tokens = content
            request = TokenizedRequest(TokenState.EXACT, [[*tokens, 0]], lora=lora, cache_salt=salt)
            found, there = self.index.match(request, [POD], 0.0).blocks[0], self.cache.leading(content)
            assert found <= there if self.forgets else found == there
        assert known <= held if self.forgets else known == held

    def teardown(self) -> None:
        """Everything is evicted, in the engine's order, copy by copy."""
        self.heal()
        while self.cache.running:
            self.cache.finish(self.cache.running[0])
        for number in range(1000, 1000 + BLOCKS):
            self.cache.start((number, 0), None, None)
            self.publish()
            self.deliver(1)
            self.compare()


class ForgetfulStream(Stream):
    """The ring holds the last batches only."""

    ring = 3
    forgets = True


def _case(machine: Any) -> Any:
    machine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
    return machine.TestCase


test_after_healing_the_index_equals_the_engine = _case(Stream)
test_what_is_known_of_a_forgetful_engine_is_true = _case(ForgetfulStream)
