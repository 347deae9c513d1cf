"""A stream and an engine that lose, repeat and restart at random: after healing the stream has told what the engine published."""

from hypothesis import given
from hypothesis import strategies as st

from epp.kvcache.events import Batch
from epp.kvcache.sequence import MAX_ATTEMPTS, MAX_QUEUED, Action, Apply, Clear, EventSequence, Gap, Replay, StreamState


def test_an_endless_replay_does_not_collect_live_batches_without_limit() -> None:
    """When too many live batches wait, the replay is given up and they are applied."""
    sequence = EventSequence(replay=True)
    sequence.connected()
    actions: list[Action] = []
    for seq in range(MAX_QUEUED):
        actions += sequence.live(seq, Batch(float(seq), rank=seq))

    assert [action.batch.rank for action in actions if isinstance(action, Apply)] == list(range(MAX_QUEUED))
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
