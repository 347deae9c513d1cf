"""How a plugin declares its parameters: a frozen dataclass, annotated with what a plain type cannot say.

`epp.config.decode` reads YAML into such records; factories receive them decoded. A field `block_size_tokens` is written
`blockSizeTokens` in a file. A ValueError raised by `__post_init__` becomes a configuration error with line and path.

Pure declarations: nothing here parses, logs or imports a plugin. Used at start-up only.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Params:
        lru_size: Annotated[int, Between(1, 1_000_000)] = 1024
        request_timeout: Annotated[str, NO_EFFECT] = ""
"""

from dataclasses import dataclass
from typing import ClassVar, Final, NewType, Protocol, runtime_checkable

Duration = NewType("Duration", float)
"""Seconds; written as a Go duration string, e.g. "150ms"."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """The key is written so, where camelCase of the field's name is not it."""

    key: str


@dataclass(frozen=True, slots=True)
class Between:
    """The number lies in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NoEffect:
    """llm-d defines the key, here it changes nothing: type-checked, accepted, and named in one log line at start."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """llm-d defines the key; any value but the default is an error that says "known, not supported yet"."""


NO_EFFECT: Final = NoEffect()
NOT_YET: Final = NotYet()
PORT: Final = Between(1, 65535)


@dataclass(frozen=True, slots=True)
class NoParams:
    """For types that read no parameters. llm-d accepts anything there, so that is accepted, and named in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadsPrefixMatches:
    """Parameters of a plugin that reads prefix matches; "" is the default producer (spec/plugins.md 1.7)."""

    prefix_match_info_producer_name: str = ""


@runtime_checkable
class MovedKeys(Protocol):
    """A parameter class that knows where keys went which it once had."""

    MOVED: ClassVar[dict[str, str]]
    """Key as it was written -> what to do instead, completing "key: ..."."""
