"""Transcripts of a stream, as tests write them down: what the source tells on the left, what it is to do on the right, the state in brackets.

`live 5@2.5` is batch 5 with time stamp 2.5, `5@?` one without, `5@unread` one that nobody could read; `reply` one of a replay's answer,
`end` its end marker, `silence` its absence; `renounce` when the answer says nothing. Only lines that end in a bracket check the state.
"""

import re

from epp.kvcache.events import Batch
from epp.kvcache.sequence import Action, Apply, Clear, EventSequence, Gap, Replay


def perform(sequence: EventSequence, step: str) -> list[Action]:
    verb, *batches = step.split()
    if verb == "connect":
        return sequence.connected()
    if verb == "drop":
        sequence.disconnected()
        return []
    told = {"refused": sequence.unreachable, "check": sequence.check, "distrust": sequence.distrust, "renounce": sequence.renounce}
    if verb in told:
        return told[verb]()
    if verb in ("end", "silence"):
        return sequence.replay_ended(complete=verb == "end")
    actions = []
    for text in batches:
        number, ts = text.split("@")
        batch = Batch(None if ts in ("?", "unread") else float(ts), rank=int(number), unread=ts == "unread")
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


def check_transcript(transcript: str, *, replay: bool) -> None:
    sequence = EventSequence(replay=replay)
    for line in filter(None, map(str.strip, transcript.splitlines())):
        parts = re.fullmatch(r"(.+?)\s*->\s*(.*?)\s*(?:\[(\w+)\])?", line)
        assert parts is not None, line
        step, expected, state = parts.groups()

        assert (line, ", ".join(map(written, perform(sequence, step)))) == (line, expected)
        assert state in (None, sequence.state.value), line
