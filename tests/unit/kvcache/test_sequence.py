"""The sequence of a stream, as transcripts: what the source tells on the left, what it is to do on the right, the state in brackets.

`live 5@2.5` is batch 5 with time stamp 2.5; `reply` one of a replay's answer, `end` its end marker, `silence` its absence.
Only lines that end in a bracket check the state.
"""

import re

import pytest

from epp.kvcache.events import Batch
from epp.kvcache.sequence import Action, Apply, Clear, EventSequence, Gap, Replay, parse_seq

WITHOUT_REPLAY = {
    "a stream heard from its beginning": """
        connect         ->                              [live]
        live 0@1 1@2    -> apply 0, apply 1             [live]
    """,
    "a late joiner knows that it knows only a part": """
        connect         ->                              [live]
        live 57@1       -> apply 57                     [partial]
        live 58@2       -> apply 58                     [partial]
    """,
    "a publisher that counts from 1 has no lost head": """
        connect         ->
        live 1@1        -> apply 1                      [live]
    """,
    "a gap is counted and what is known stays": """
        connect         ->
        live 0@1        -> apply 0
        live 4@2        -> gap 3, apply 4               [partial]
    """,
    "an engine that restarts is another one: back to 0 with a newer time": """
        connect         ->
        live 0@1 1@2    -> apply 0, apply 1
        live 0@9        -> clear, apply 0               [live]
    """,
    "a restarted engine can reach the very number seen last": """
        connect         ->
        live 0@1 1@2    -> apply 0, apply 1
        drop            ->                              [lost]
        connect         ->                              [live]
        live 1@9        -> clear, apply 1               [live]
    """,
    "the first batches of a restarted engine can be lost": """
        connect         ->
        live 0@1 1@2 2@3 3@4 -> apply 0, apply 1, apply 2, apply 3
        live 2@9        -> clear, apply 2               [partial]
    """,
    "a duplicate is dropped": """
        connect         ->
        live 0@1 1@2    -> apply 0, apply 1
        live 1@2 0@1    ->                              [live]
        live 2@3        -> apply 2
    """,
    "a batch nobody could read has its place in the sequence": """
        connect         ->
        live 0@1        -> apply 0
        live 1@?        -> apply 1
        live 2@3        -> apply 2                      [live]
        live 1@?        ->
    """,
    "an engine that refuses to be connected to again is gone with its cache": """
        connect         ->
        live 0@1 1@2    -> apply 0, apply 1
        drop            ->                              [lost]
        refused         -> clear                        [lost]
        refused         ->
        connect         ->                              [live]
        live 0@9        -> apply 0                      [live]
    """,
    "where other witnesses contradict, nothing said so far counts": """
        connect         ->
        live 0@1 1@2    -> apply 0, apply 1
        distrust        -> clear                        [partial]
        live 2@3        -> apply 2                      [partial]
    """,
    "nothing can be checked": """
        connect         ->
        live 0@1        -> apply 0
        check           ->                              [live]
    """,
    "after a connection breaks the stream goes on where it was": """
        connect         ->
        live 0@1        -> apply 0
        drop            ->                              [lost]
        connect         ->                              [live]
        live 1@2        -> apply 1                      [live]
    """,
}

WITH_REPLAY = {
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


def perform(sequence: EventSequence, step: str) -> list[Action]:
    verb, *batches = step.split()
    if verb == "connect":
        return sequence.connected()
    if verb == "drop":
        sequence.disconnected()
        return []
    if verb in ("refused", "check", "distrust"):
        return {"refused": sequence.unreachable, "check": sequence.check, "distrust": sequence.distrust}[verb]()
    if verb in ("end", "silence"):
        return sequence.replay_ended(complete=verb == "end")
    actions = []
    for text in batches:
        number, ts = text.split("@")
        batch = Batch(None if ts == "?" else float(ts), rank=int(number))
        actions += (sequence.live if verb == "live" else sequence.replayed)(int(number), batch)
    return actions


def written(action: Action) -> str:
    match action:
        case Apply(batch):
            return f"apply {batch.rank}"
        case Gap(missing):
            return f"gap {missing}"
        case Replay(start):
            return f"replay {start}"
        case Clear():
            return "clear"


def run(transcript: str, *, replay: bool) -> None:
    sequence = EventSequence(replay=replay)
    for line in filter(None, map(str.strip, transcript.splitlines())):
        parts = re.fullmatch(r"(.+?)\s*->\s*(.*?)\s*(?:\[(\w+)\])?", line)
        assert parts is not None, line
        step, expected, state = parts.groups()

        assert (line, ", ".join(map(written, perform(sequence, step)))) == (line, expected)
        assert state in (None, sequence.state.value), line


@pytest.mark.parametrize("name", list(WITHOUT_REPLAY))
def test_without_replay_socket(name: str) -> None:
    """A stream without a replay socket notices restarts and gaps by number and time alone."""
    run(WITHOUT_REPLAY[name], replay=False)


@pytest.mark.parametrize("name", list(WITH_REPLAY))
def test_with_replay_socket(name: str) -> None:
    """A stream with a replay socket brings back what it missed, each batch once and in order."""
    run(WITH_REPLAY[name], replay=True)


@pytest.mark.parametrize(
    ("frame", "seq"),
    [
        (b"\0" * 8, 0),
        (b"\0\0\0\0\0\0\1\2", 258),
        (b"\0\0\0\0\0\0\0\5" + b"incarnation-uuid", 5),
        (b"\0\0\0\0\0\0\0\5x", 5),
        (b"", None),
        (b"\0\0\0\5", None),
    ],
)
def test_sequence_frame(frame: bytes, seq: int | None) -> None:
    """The number is the first 8 bytes, whatever an engine appends; a shorter frame is malformed."""
    assert parse_seq(frame) == seq
