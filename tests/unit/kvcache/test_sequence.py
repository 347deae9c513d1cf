"""The sequence of a stream without a replay socket, as transcripts (transcripts.py); and the frame its numbers come in."""

import pytest

from epp.kvcache.sequence import parse_seq
from tests.unit.kvcache.transcripts import check_transcript

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
    "a batch without a time has its place in the sequence": """
        connect         ->
        live 0@1        -> apply 0
        live 1@?        -> apply 1
        live 2@3        -> apply 2                      [live]
        live 1@?        ->
    """,
    "a batch nobody could read has its place too, but nobody knows all from then on": """
        connect         ->
        live 0@1        -> apply 0                      [live]
        live 1@unread   -> apply 1                      [partial]
        live 2@3        -> apply 2                      [partial]
        live 0@9        -> clear, apply 0               [live]
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


@pytest.mark.parametrize("name", list(WITHOUT_REPLAY))
def test_without_replay_socket(name: str) -> None:
    """A stream without a replay socket notices restarts and gaps by number and time alone."""
    check_transcript(WITHOUT_REPLAY[name], replay=False)


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
