"""The sequence of a stream with a replay socket, as transcripts (transcripts.py); and any order of things that can happen to one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import EngineHash
from epp.kvcache.events import Batch, BlockStored
from epp.kvcache.sequence import MAX_ATTEMPTS, MAX_QUEUED, MAX_QUEUED_BYTES, Action, Apply, Clear, EventSequence, Gap, Replay, StreamState
from tests.unit.kvcache.transcripts import check_transcript

WITH_REPLAY = {
    "a history that says nothing is not asked for again on this connection": """
        connect         -> replay 0
        reply 0@1 1@?   -> apply 0, apply 1             [replaying]
        live 9@9        ->                              [replaying]
        renounce        -> gap 7, apply 9               [partial]
        live 12@12      -> gap 2, apply 12              [partial]
        check           ->                              [partial]
        drop            ->                              [lost]
        connect         -> replay 12                    [replaying]
    """,
    "a batch that nobody could read when it was replayed either is still missing": """
        connect         -> replay 0
        reply 0@1 1@unread 2@3 -> apply 0, apply 1, apply 2 [replaying]
        end             -> replay 2
        reply 2@3       ->
        end             ->                              [partial]
    """,
    "an engine that has published nothing yet": """
        connect         -> replay 0                     [replaying]
        end             ->                              [live]
        live 0@1        -> apply 0                      [live]
    """,
    "a late joiner asks again until an answer brings nothing new": """
        connect         -> replay 0                     [replaying]
        reply 0@1 1@2   -> apply 0, apply 1
        end             -> replay 1                     [replaying]
        reply 1@2       ->
        end             ->                              [live]
    """,
    "live batches wait for the replay and overlap is applied once": """
        connect         -> replay 0
        live 2@3 3@4    ->
        reply 0@1 1@2 2@3 -> apply 0, apply 1, apply 2
        end             -> apply 3                      [live]
    """,
    "the replay stops when it meets the first live batch": """
        connect         -> replay 0
        live 2@3        ->
        reply 0@1 1@2   -> apply 0, apply 1
        end             -> apply 2                      [live]
    """,
    "a head gone from the ring leaves the stream partial": """
        connect         -> replay 0
        reply 90@1 91@2 -> apply 90, apply 91
        end             -> replay 91
        reply 91@2      ->
        end             ->                              [partial]
    """,
    "a gap is healed from the last batch known, which proves it is the same engine": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        live 3@4        -> gap 2, replay 0              [replaying]
        reply 0@1 1@2 2@3 3@4 -> apply 1, apply 2, apply 3
        end             ->                              [live]
        live 4@5        -> apply 4
    """,
    "the gap turns out to be a restart nobody saw": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2    -> apply 0, apply 1
        live 5@99       -> gap 3, replay 1
        reply 1@95 2@96 -> clear
        end             -> replay 0                     [replaying]
        reply 0@94 1@95 2@96 3@97 4@98 5@99 -> apply 0, apply 1, apply 2, apply 3, apply 4, apply 5
        end             ->                              [live]
    """,
    "an engine that restarted during a lost connection": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2 2@3 -> apply 0, apply 1, apply 2
        drop            ->                              [lost]
        connect         -> replay 2                     [replaying]
        end             -> clear, replay 0
        reply 0@50      -> apply 0
        end             -> replay 0
        reply 0@50      ->
        end             ->                              [live]
    """,
    "a connection that broke and came back, the engine lived": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        drop            ->
        connect         -> replay 0
        live 3@4        ->
        reply 0@1 1@2 2@3 3@4 -> apply 1, apply 2, apply 3
        end             ->                              [live]
    """,
    "what is still read from a broken connection counts only if it follows": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        drop            ->
        live 1@2        -> apply 1
        live 7@8        ->                              [lost]
        connect         -> replay 1
    """,
    "a restart seen live with its first batch needs no replay": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2    -> apply 0, apply 1
        live 0@9        -> clear, apply 0               [live]
    """,
    "a restart seen live in its middle is replayed from the beginning": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2 2@3 -> apply 0, apply 1, apply 2
        live 2@9        -> clear, replay 0
        reply 0@7 1@8 2@9 -> apply 0, apply 1, apply 2
        end             ->                              [live]
    """,
    "a replay socket that never answers is given up and live goes on": """
        connect         -> replay 0                     [replaying]
        live 4@5 5@6    ->
        silence         -> apply 4, apply 5             [partial]
        live 6@7        -> apply 6
    """,
    "a gap that cannot be healed is counted once and what is known stays": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        live 2@3        -> gap 1, replay 0
        live 3@4        ->
        silence         -> apply 2, apply 3             [partial]
    """,
    "an overrun socket leaves a hole in the answer: asked again from there": """
        connect         -> replay 0
        reply 0@1 1@2 4@5 5@6 -> apply 0, apply 1
        end             -> replay 1
        reply 1@2 2@3 3@4 4@5 5@6 -> apply 2, apply 3, apply 4, apply 5
        end             -> replay 5
        reply 5@6       ->
        end             ->                              [live]
    """,
    "an overrun socket loses the end of its answer: the waiting live batch shows it": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        live 3@4        -> gap 2, replay 0
        reply 0@1       ->
        end             -> replay 0                     [replaying]
        reply 0@1 1@2 2@3 3@4 -> apply 1, apply 2, apply 3
        end             ->                              [live]
    """,
    "an overrun socket can also lose the end marker": """
        connect         -> replay 0
        reply 0@1       -> apply 0
        silence         -> replay 0
        reply 0@1       ->
        end             ->                              [live]
    """,
    "a publisher that keeps leaving out the same batch is taken at its word: what came before is not sure any more, what follows is": """
        connect         -> replay 0
        reply 0@1 2@3   -> apply 0
        end             -> replay 0
        reply 0@1 2@3   ->
        end             -> replay 0
        reply 0@1 2@3   ->
        end             -> replay 0
        live 5@6        ->
        reply 0@1 2@3 3@4 4@5 -> clear, apply 2, apply 3, apply 4
        end             -> apply 5                      [partial]
        live 6@7        -> apply 6                      [partial]
    """,
    "a ring that has moved on past us: nothing that was known is sure any more": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        live 90@91      -> gap 89, replay 0
        reply 89@90 90@91 -> clear, apply 89, apply 90
        end             ->                              [partial]
    """,
    "a ring that has moved on past us by one batch: it may be another engine's": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        drop            ->                              [lost]
        connect         -> replay 0
        reply 1@8 2@9   -> clear, apply 1, apply 2
        end             -> replay 2
        reply 2@9       ->
        end             ->                              [partial]
    """,
    "live batches of a restarted engine end up behind the replay of the old one": """
        connect         -> replay 0
        live 0@50       ->
        reply 0@1 1@2   -> apply 0, apply 1
        end             -> clear, apply 0               [live]
    """,
    "a check of an idle stream where nothing was lost": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2    -> apply 0, apply 1
        check           -> replay 1                     [live]
        reply 1@2       ->
        end             ->                              [live]
    """,
    "a check brings back what was lost at the end": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        check           -> replay 0                     [live]
        live 3@4        ->
        reply 0@1 1@2 2@3 -> apply 1, apply 2
        end             -> apply 3                      [live]
    """,
    "a check finds another engine, which says nothing by itself": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2    -> apply 0, apply 1
        check           -> replay 1                     [live]
        end             -> clear, replay 0              [replaying]
        reply 0@9       -> apply 0
        end             -> replay 0
        reply 0@9       ->
        end             ->                              [live]
    """,
    "a check nobody answers proves nothing": """
        connect         -> replay 0
        end             ->
        live 0@1        -> apply 0
        check           -> replay 0                     [live]
        live 1@2        ->
        silence         -> apply 1                      [live]
    """,
    "an engine that refuses is gone; what comes back is learnt from the beginning": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2    -> apply 0, apply 1
        drop            ->                              [lost]
        refused         -> clear
        connect         -> replay 0                     [replaying]
        reply 0@9       -> apply 0
    """,
    "where other witnesses contradict, everything is learnt anew": """
        connect         -> replay 0
        end             ->
        live 0@1 1@2    -> apply 0, apply 1
        distrust        -> clear, replay 0              [replaying]
        reply 0@1 1@2   -> apply 0, apply 1
        end             -> replay 1
        reply 1@2       ->
        end             ->                              [live]
    """,
    "replies after the replay was given up change nothing": """
        connect         -> replay 0
        silence         ->                              [partial]
        reply 0@1       ->
        end             ->                              [partial]
    """,
}


@pytest.mark.parametrize("name", list(WITH_REPLAY))
def test_with_replay_socket(name: str) -> None:
    """A stream with a replay socket brings back what it missed, each batch once and in order."""
    check_transcript(WITH_REPLAY[name], replay=True)


def test_an_endless_replay_does_not_collect_live_batches_without_limit() -> None:
    """When too many live batches wait, the replay is given up and they are applied."""
    sequence = EventSequence(replay=True)
    sequence.connected()
    actions: list[Action] = []
    for seq in range(MAX_QUEUED):
        actions += sequence.live(seq, Batch(float(seq), rank=seq))

    assert [action.batch.rank for action in actions if isinstance(action, Apply)] == list(range(MAX_QUEUED))
    assert sequence.state is StreamState.LIVE


def test_nor_a_few_large_ones() -> None:
    """What they take counts, not how many they are: a megabyte of tokens each, of one block."""
    sequence = EventSequence(replay=True)
    sequence.connected()
    large = BlockStored([EngineHash(1)], None, bytes(1 << 20), 16)
    waiting = 0
    while not sequence.live(waiting, Batch(float(waiting), events=[large])):
        waiting += 1
    assert waiting < MAX_QUEUED_BYTES >> 20
    assert sequence.state is StreamState.LIVE


class Engine:
    """A publisher with a ring that forgets nothing; a restart begins a new history."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.history: list[Batch] = []

    def publish(self) -> tuple[int, Batch]:
        self.clock += 1
        seq = len(self.history)
        self.history.append(Batch(self.clock, rank=seq))
        return seq, self.history[-1]


class Listener:
    """Performs the actions of a sequence against an engine, at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sequence = EventSequence(replay=True)
        self.applied: list[Batch] = []
        self.asked: int | None = None
        self.holes = 0
        """Answers in a row that left something out."""

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Apply(batch):
                    self.applied.append(batch)
                case Clear():
                    self.applied.clear()
                case Replay(start):
                    self.asked = start
                case Gap():
                    pass

    def answer(self, drop: set[int]) -> None:
        """The engine answers what was asked, leaving out some batches.

        Never the first: a socket has to be filled before it overruns. Nor so often in a row that what is missing is taken for gone.
        """
        start, self.asked = self.asked, None
        if start is not None:
            self.holes = self.holes + 1 if drop and self.holes + 1 < MAX_ATTEMPTS else 0
            drop = drop if self.holes else set()
            for seq, batch in list(enumerate(self.engine.history))[start:]:
                if seq == start or seq not in drop:
                    self.perform(self.sequence.replayed(seq, batch))
            self.perform(self.sequence.replay_ended(complete=True))

    def heal(self) -> None:
        """Answer until nothing more is asked."""
        while self.asked is not None:
            self.answer(set())


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["publish", "lose", "repeat", "restart", "reconnect", "answer"]),
            st.sets(st.integers(0, 6), min_size=1, max_size=3),
        ),
        max_size=60,
    )
)
def test_after_healing_exactly_the_living_engines_history_is_applied(steps: list[str | set[int]]) -> None:
    """Whatever was lost, repeated, restarted or answered with holes: one batch heard later, all is as the engine published it."""
    engine = Engine()
    listener = Listener(engine)
    listener.perform(listener.sequence.connected())
    for step in steps:
        if isinstance(step, set):
            listener.answer(step)
        elif step == "publish":
            listener.perform(listener.sequence.live(*engine.publish()))
        elif step == "lose":
            engine.publish()
        elif step == "answer":
            listener.answer(set())
        elif step == "repeat" and engine.history:
            listener.perform(listener.sequence.live(len(engine.history) - 1, engine.history[-1]))
        elif step in ("restart", "reconnect"):
            if step == "restart":
                engine.history = []
            listener.sequence.disconnected()
            listener.asked = None
            listener.perform(listener.sequence.connected())

    listener.heal()
    listener.perform(listener.sequence.live(*engine.publish()))
    listener.heal()

    assert [batch.ts for batch in listener.applied] == [batch.ts for batch in engine.history]
