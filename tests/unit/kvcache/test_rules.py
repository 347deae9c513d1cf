"""The index's rules of spec/kv.md section 8, as transcripts: what an engine says on the left, what a prompt finds on the right.

A letter is the text of one block of four tokens; a block is called by all letters up to its end, as engines' hashes are. So
`store cd after ab` announces the blocks `abc` and `abcd`, `remove abc` one copy of the first of them, `name abc cpu` a copy
without tokens, as offloaders do it. `on b` tells which pod speaks (else `a`), `group=1`, `kind=mamba` and so on what the event
says, `masked` that only the last block of the span is announced. `-> abc: gpu 2, cpu 1` asks where the leading blocks of the prompt
are, on the pod named before it; a prompt is one token longer than its letters. `!` tells the problems reported.

Rules 2-4 and 6 are in test_sequence.py; 1 and the metrics of 6 in tests/integration/kv_events.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from epp.domain import EndpointId, EngineHash, TokenizedRequest, TokenState, medium_name
from epp.kvcache.events import AllCleared, Batch, BlockRemoved, BlockStored, Event
from epp.kvcache.index import PrefixIndex
from epp.kvcache.keys import Extras, pack_tokens
from epp.reporter import Reporter

BLOCK = 4

RULES = {
    "5: a block whose parent is unknown waits for it": """
        store cd after ab               ! orphan
                                        -> abcd: nothing
        store ab                        -> abcd: gpu 4
    """,
    "5: what waited and was removed meanwhile is not found": """
        store cd after ab               ! orphan
        remove abcd
        store ab                        -> abcd: gpu 3
    """,
    "5: each medium has blocks of its own that wait": """
        store cd after ab cpu           ! orphan
        store c after ab                ! orphan
        store ab                        -> abcd: gpu 3, cpu 1
        remove abc                      -> abcd: gpu 2, cpu 2
    """,
    "7: adapters and salts are other blocks, the base model too": """
        store ab
        store ab lora=x
        store abc salt=s                -> abc: gpu 2
                                        -> abc lora=x: gpu 2
                                        -> abc salt=s: gpu 3
                                        -> abc lora=y: nothing
    """,
    "8: every copy counts, in each medium and group by itself": """
        store abc
        store c after ab
        remove abc                      -> abc: gpu 3
        name abc cpu
        remove abc                      -> abc: gpu 2, cpu 1
        remove abc                      -> abc: gpu 2, cpu 1
        remove abc cpu                  -> abc: gpu 2
    """,
    "8: groups share hashes: what one drops the others still have": """
        store abc group=0 kind=full_attention
        store abc group=1 kind=mla_attention
                                        -> abc: gpu 3
        remove abc group=1              -> abc: gpu 2
        remove ab group=0               -> abc: gpu 1
        store c after ab group=1 kind=mla_attention
                                        -> abc: gpu 1
        store b after a group=0 kind=full_attention
                                        -> abc: gpu 3
    """,
    "9: pods of different block sizes, each in its own": """
        store abc
        store abcde size=2 on b         -> abc on b: gpu 5
                                        -> abc: gpu 3
    """,
    "9: groups of different block sizes: as far as both hold it, in blocks of both": """
        store abcdef group=0 kind=full_attention size=2
        store abc group=1 kind=full_attention size=4
                                        -> abc: gpu 6
        remove abc group=1              -> abc: gpu 4
        remove abcd group=0             -> abc: gpu 2
        remove abc group=0              -> abc: gpu 2
    """,
    "9: a partial block counts when it is whole": """
        store a size=2
        store ab size=4                 -> ab: gpu 2
        store abcde size=2              ! block_size
        store e after abcd size=2       -> ab: gpu 2
    """,
    "10: only groups that attend to the whole prompt count": """
        store abc group=0 kind=sliding_window
        store abc group=1 kind=mamba
        store abc group=2 kind=chunked_local_attention
                                        -> abc: nothing
        store ab group=3 kind=full_attention
                                        -> abc: gpu 2
        remove a group=0
        remove a group=1                -> abc: gpu 2
        remove a group=3                -> abc: nothing
    """,
    "10: what a group is, is remembered when its later events do not say": """
        store ab group=0 kind=sliding_window
        store ab group=1 kind=full_attention
        store c after ab group=0        -> abc: gpu 2
        store c after ab group=1        -> abc: gpu 3
    """,
    "10: a window that leaves out blocks is never taken for a prefix": """
        store abcd group=0 kind=sliding_window masked
        store abcd group=1 kind=full_attention masked
                                        -> abcd: nothing
                                        ! not_dense
    """,
    "10: a group without a kind counts until it leaves out blocks": """
        store abc group=0               -> abc: gpu 3
        store de after abc group=0 masked
                                        ! masked_group
                                        -> abc: nothing
        store abc group=0               -> abc: nothing
    """,
    "10: a group without a kind that came first gives way to one that has": """
        store abc group=0
        store ab group=1 kind=full_attention
                                        -> abc: gpu 2
    """,
    "10: of groups that all have no kind the best counts": """
        store abc group=0
        store abcd group=1
        remove a group=0                -> abcd: gpu 4
    """,
    "10: a kind nobody knows counts while it is alone": """
        store abc group=0 kind=unknown  -> abc: gpu 3
        store abc group=1 kind=sliding_window
                                        -> abc: nothing
        store a group=2 kind=full_attention
                                        -> abc: gpu 1
    """,
    "10: each rank has groups of its own": """
        store abc group=0 kind=full_attention rank=0
        store abcd group=0 kind=sliding_window rank=1
                                        -> abcd: gpu 3
        store abcd group=1 kind=full_attention rank=1
                                        -> abcd: gpu 4
    """,
    "11: what leaves the GPU is found where it was copied to": """
        store abcd
        name ab cpu
        name abc CPU
        remove abc
        remove ab
        remove abcd                     -> abcd: gpu 1, cpu 2
        remove ab cpu                   -> abcd: gpu 1
    """,
    "11: an engine loads from where its run in GPU memory ends, nearest medium first": """
        store abcdef
        name ab cpu
        name abc cpu
        name abcd STORAGE
        name abcde cpu
        remove ab
        remove abcd
        remove abcde                    -> abcdef: gpu 1, cpu 2, storage 2
    """,
    "11: a block named just after it left the GPU is still known": """
        store abc
        name ab cpu
        remove abc                      -> abc: gpu 2
        name abc cpu                    -> abc: gpu 2, cpu 1
    """,
    "11: nothing can be made of names nobody explained": """
        store ab
        name abc cpu                    ! offloaded_unknown
                                        -> abc: gpu 2
    """,
    "11: offloaders that tell tokens need no GPU": """
        store abc CPU_PINNED            -> abc: cpu 3
        store ab                        -> abc: gpu 2, cpu 1
    """,
    "11: mediums that are nobody's own are passed over": """
        store ab
        store abc EXTERNAL
        store abc mooncake              -> abc: gpu 2
    """,
    "11: a cleared cache is empty in every medium": """
        store abc
        name a cpu
        clear                           -> abc: nothing
        name a cpu                      ! offloaded_unknown
        store a                         -> abc: gpu 1
    """,
    "14: a pod that is sent a prompt counts as having it, for a time": """
        store ab
        send abcd until=2               -> abcd: gpu 4
        remove b                        -> abcd: gpu 4
        wait 2                          -> abcd: gpu 2
    """,
    "14: after what is speculated a pod goes on with what it has": """
        store abcd
        remove b
        remove ab
        send abc until=2                -> abcd: gpu 4
        wait 2                          -> abcd: gpu 1
    """,
    "14: what is offloaded lies behind what is speculated": """
        store abcd
        name abcd cpu
        remove abc
        remove abcd                     -> abcd: gpu 2
        send abc until=2                -> abcd: gpu 3, cpu 1
    """,
    "15: a pod that goes takes all it had along, and nothing else": """
        store abc
        name abc cpu
        store ab on b
        gone                            -> abc: nothing
                                        -> abc on b: gpu 2
        store a                         -> abc: gpu 1
    """,
}


class _Transcript(Reporter):
    """Plays the lines of one rule."""

    def __init__(self) -> None:
        self.index = PrefixIndex(self, default_block_size=BLOCK)
        self.problems: list[str] = []
        self.now = 0.0

    def kv_event_error(self, endpoint: EndpointId, reason: str) -> None:
        self.problems.append(reason)

    def play(self, line: str) -> None:
        """What is said, and behind `!` or `->` what came of it."""
        said, _, rest = line.partition("!")
        problem = rest.split("->")[0].strip() if rest else ""
        said, _, asked = said.partition("->") if not rest else (said, "", rest.partition("->")[2])
        words = said.split()
        if words:
            assert not self.problems
            self.say(words)
        if problem:
            assert self.problems.pop() == problem
        if asked:
            prompt, _, expected = asked.partition(":")
            assert self.find(prompt.split()) == expected.strip(), line

    def say(self, words: Sequence[str]) -> None:
        verb, *rest = words
        names, said, pod = _read(rest)
        rank, events = int(said.pop("rank", 0)), list[Event]()
        medium = medium_name(next((name for name in names if name not in _blocks(names)), "gpu"))
        match verb:
            case "store":
                events = [_stored(_blocks(names), medium, **said)]
            case "remove":
                events = [BlockRemoved([_hash(block) for block in _blocks(names)], medium, _number(said))]
            case "name":
                events = [BlockStored([_hash(block) for block in _blocks(names)], None, b"", 0, medium=medium, group=_number(said))]
            case "clear":
                events = [AllCleared()]
            case "gone":
                self.index.remove(pod)
            case "wait":
                self.now += float(rest[0])
            case "send":
                hits = self.index.match(_request(names[0]), [pod], self.now)
                self.index.speculate(hits, pod, self.now + float(said["until"]))
            case _:
                raise AssertionError(verb)
        if events:
            self.index.apply(pod, rank, Batch(0.0, rank, events))

    def find(self, words: Sequence[str]) -> str:
        (prompt,), said, pod = _read(words)
        hits = self.index.match(_request(prompt, **said), [pod], self.now)
        found = {"gpu": hits.tokens[0] - sum(held[0] for held in hits.offloaded.values())}
        found |= {medium: held[0] for medium, held in hits.offloaded.items()}
        return ", ".join(f"{medium} {tokens // hits.block_sizes[0]}" for medium, tokens in found.items() if tokens) or "nothing"


def _read(words: Sequence[str]) -> tuple[list[str], dict[str, str], EndpointId]:
    """Blocks and mediums, `key=value`, and the pod."""
    names = list(words)
    pod = "a"
    if "on" in names:
        at = names.index("on")
        pod = names[at + 1]
        del names[at : at + 2]
    said = dict(name.split("=") for name in names if "=" in name)
    return [name for name in names if "=" not in name], said, EndpointId(pod)


def _blocks(names: Sequence[str]) -> list[str]:
    """Those of the words that are blocks: letters in the order of the alphabet."""
    return [name for name in names if name in "abcdefgh" or name in ("after", "masked")]


def _number(said: dict[str, str]) -> int | None:
    return int(said["group"]) if "group" in said else None


def _hash(block: str, others: str = "") -> EngineHash:
    return EngineHash(int.from_bytes((others + block).encode(), "big"))


def _tokens(letters: str, size: int = BLOCK) -> list[int]:
    return [ord(letter) for letter in letters for _ in range(size)]


def _text(letters: str, size: int) -> list[int]:
    """What `letters` blocks of this size say: the beginning of the same text, whatever the size."""
    return _tokens("abcdefgh")[: len(letters) * size]


def _request(letters: str, lora: str | None = None, salt: str | None = None) -> TokenizedRequest:
    return TokenizedRequest(TokenState.EXACT, [[*_tokens(letters), 0]], lora=lora, cache_salt=salt)


def _stored(words: Sequence[str], medium: str, size: str = str(BLOCK), **said: Any) -> BlockStored:
    span = words[0]
    before = words[words.index("after") + 1] if "after" in words else ""
    ends = [before + span[: end + 1] for end in range(len(span))]
    tokens = _text(before + span, int(size))[len(before) * int(size) :]
    others = said.get("lora", "") + said.get("salt", "")
    extras: list[Extras] | None = [(("salt", said["salt"]),), *[()] * (len(span) - 1)] if "salt" in said else None
    return BlockStored(
        [_hash(block, others) for block in (ends[-1:] if "masked" in words else ends)],
        _hash(before, others) if before else None,
        pack_tokens(tokens),
        int(size),
        said.get("lora"),
        medium,
        extras,
        _number(said),
        said.get("kind"),
    )


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    """Line by line, the index knows what the engines hold."""
    transcript = _Transcript()
    for line in RULES[name].strip().splitlines():
        transcript.play(line)
    assert not transcript.problems


def test_rule_12_the_last_token_is_always_computed() -> None:
    """A prompt that ends with a block cannot hit it, in whatever medium it is; the next prompt, one token longer, can."""
    transcript = _Transcript()
    for line in ("store abc", "name ab cpu", "name abc cpu", "remove ab", "remove abc"):
        transcript.play(line)
    whole, longer = _tokens("abc"), [*_tokens("abc"), 0]
    hits = transcript.index.match(TokenizedRequest(TokenState.EXACT, [whole, longer]), [EndpointId("a")], 0.0)

    assert (hits.tokens, hits.offloaded) == ([8 + 12], {"cpu": [4 + 8]})
