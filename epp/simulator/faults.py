"""What goes wrong on purpose: which published batches are lost, late or told twice, and which tokens are not what a picker believes.

Pure. `Faults` is the wish, as POST /faults and `--faults` take it: strict JSON, where a mistake is told by its path. `FaultInjector` decides
batch by batch; `publisher` performs what it says, `model` the wrong tokens, `process` the silence. Random choices are seeded.
"""

import random
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Final, Literal

import msgspec

from epp.simulator.errors import ApiError

_Count = Annotated[int, msgspec.Meta(ge=0)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=3600.0)]


class Silence(Enum):
    """How a pod stops to be heard without saying so."""

    PUBLISHER = "publisher"
    """The thread that publishes has died: requests are served and sockets answer pings, but no batch and no replay comes any more."""
    HOST = "host"
    """The machine hangs or the network swallows everything: connections stay open, none is refused, and not one byte comes."""


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which batches a fault meets; one that any of these names."""

    next: _Count = 0
    """The next so many."""
    every: _Count = 0
    """The n-th, the 2n-th, ... from now on; 0: none."""
    share: _Share = 0.0
    """This part of all, at random."""

    def __post_init__(self) -> None:
        if not (self.next or self.every or self.share):
            raise ValueError("meets no batch: give next, every or share")


class Drop(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Batches that no subscriber gets, as beyond PUB's high-water mark or while a connection was broken."""

    ring: Literal["keeps", "forgets", "skips"] = "keeps"
    """What a replay tells of them. keeps: all. forgets: nothing, nor of what came before, as a full ring. skips: a hole, as an overrun ROUTER."""


class Delay(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Batches that arrive later; a replay tells them at once."""

    seconds: _Seconds
    in_order: bool = True
    """Later batches wait for them, as on one connection; false: they overtake."""


class Duplicate(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Batches that arrive more than once."""

    extra: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class WrongTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the engine makes of a request that a picker with the published model files cannot know of."""

    template: str | None = None
    """Another chat template (Jinja)."""
    skip: _Count = 0
    """So many tokens are cut off the front of each prompt: 1 is a missing BOS."""
    prepend: list[_TokenId] = []
    """These stand in front of each prompt: an extra BOS, another header."""
    lora_name: str | None = None
    """Events name this adapter."""
    cache_salt: str | None = None
    """Every request is salted with this."""


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that goes wrong at a pod; by default nothing."""

    drop: Drop | None = None
    delay: Delay | None = None
    duplicate: Duplicate | None = None
    silence: Silence | None = None
    tokens: WrongTokens = WrongTokens()

    def awake(self) -> "Faults":
        """The same without the silence: a new process is heard again."""
        return msgspec.structs.replace(self, silence=None)


NONE: Final = Faults()

_decoder = msgspec.json.Decoder(Faults)


def decode(body: bytes | str) -> Faults:
    """Read a wish. Raises ApiError that names the field."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise ApiError(f"faults: {error}", param=_field_of(error)) from error
    except msgspec.DecodeError as error:
        raise ApiError(f"faults: the body is not JSON: {error}") from error


def _field_of(error: msgspec.ValidationError) -> str | None:
    """msgspec ends its sentences with "- at `$.drop.next`"."""
    _, found, path = str(error).rpartition(" - at `$.")
    return path.rstrip("`") if found else None


@dataclass(slots=True)
class Treatment:
    """What happens to one batch."""

    sent: int = 1
    """How often subscribers get it."""
    delay_s: float = 0.0
    in_order: bool = True
    ring: Literal["keeps", "forgets", "skips"] = "keeps"


class FaultInjector:
    """The faults of one pod; outlives its restarts, because it is the world that is wrong. One owner, one thread."""

    def __init__(self, faults: Faults, seed: str) -> None:
        self._seed = seed
        self._met: dict[str, int] = {}
        self.set(faults)

    def set(self, faults: Faults) -> None:
        """From now on these and no others; counts begin anew."""
        self.faults = faults
        self._random = random.Random(self._seed)
        self._batch = 0
        self._met = dict.fromkeys(("drop", "delay", "duplicate"), 0)

    @property
    def met(self) -> dict[str, int]:
        """Batches that each fault has met since it was set."""
        return dict(self._met)

    def treat(self) -> Treatment:
        """Decide the next batch; what is dropped is neither late nor told twice."""
        self._batch += 1
        faults = self.faults
        if faults.silence is Silence.PUBLISHER:
            return Treatment(sent=0, ring="skips")
        # Each is asked, so that one fault does not change whom another meets.
        dropped = self._meets("drop", faults.drop)
        delayed = self._meets("delay", faults.delay)
        doubled = self._meets("duplicate", faults.duplicate)
        if dropped and faults.drop:
            return Treatment(sent=0, ring=faults.drop.ring)
        treatment = Treatment()
        if delayed and faults.delay:
            treatment.delay_s, treatment.in_order = faults.delay.seconds, faults.delay.in_order
        if doubled and faults.duplicate:
            treatment.sent += faults.duplicate.extra
        return treatment

    def _meets(self, name: str, selection: Selection | None) -> bool:
        if selection is None:
            return False
        by_chance = self._random.random() < selection.share
        hit = by_chance or self._batch <= selection.next or (selection.every > 0 and self._batch % selection.every == 0)
        self._met[name] += hit
        return hit
