"""msgpack to plain Python, in bounded memory whoever wrote it (spec/kv.md 1.7): a megabyte of empty arrays would become a hundred.

What is short is decoded as it is. What is long is taken apart level by level: a batch, its events, their fields, each of them no more than
an engine has; of these, lists of numbers and bytes may be long, and everything that nests is short in all. What is otherwise costs its event.
One event after the other is decoded, when it is asked for: as Python objects a list takes up to thirteen times its bytes.
Called by `events.decode`; pure.
"""

from typing import Final

import msgspec

PLAIN_BYTES: Final = 32 << 10
"""Shorter payloads can do no harm."""
MAX_EVENTS: Final = 1 << 15
"""Blocks are evicted one by one: so many removals, as vLLM writes them, fill a message of 2 MiB."""
MAX_FIELDS: Final = 24
MAX_LIST: Final = 1 << 18
"""Entries of one list: tokens, or blocks, of a step."""
MAX_LISTED: Final = 1 << 19
"""Entries of all lists of a payload: several cache groups tell of the same tokens."""
NESTED_BYTES: Final = 256 << 10
"""Of extra keys and fields nobody knows, in all events of a payload together."""

MALFORMED: Final = object()
"""In place of an event that is not one."""

_plain: Final = msgspec.msgpack.decode
_array: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_map: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_flat: Final = msgspec.msgpack.Decoder(list[int | bytes | None])
_Flat = int | float | str | None | list[int | bytes | None]
_flat_event: Final = msgspec.msgpack.Decoder(dict[str, _Flat] | list[_Flat])


def unpack(payload: bytes) -> object:
    """The decoded batch; the events of a long one are a `map`. Raises ValueError, RecursionError or MemoryError where the whole is no batch."""
    if len(payload) <= PLAIN_BYTES:
        return _plain(payload)
    taker = _Taker()
    parts = _parts(memoryview(payload), MAX_FIELDS)
    if isinstance(parts, dict):
        return {name: taker.events(raw) if name == "events" else taker.field(raw) for name, raw in parts.items()}
    return [taker.events(raw) if i == 1 else taker.field(raw) for i, raw in enumerate(parts)]


class _Taker:
    """Takes one payload apart."""

    __slots__ = ("_listed_left", "_nested_left")

    def __init__(self) -> None:
        self._nested_left = NESTED_BYTES
        self._listed_left = MAX_LISTED

    def events(self, raw: msgspec.Raw) -> object:
        """All of them, in their order."""
        parts = _parts(memoryview(raw), MAX_EVENTS)
        return map(self._event, parts) if isinstance(parts, list) else MALFORMED

    def _event(self, raw: msgspec.Raw) -> object:
        data = memoryview(raw)
        if len(data) <= PLAIN_BYTES:
            try:
                return _flat_event.decode(data)
            except (ValueError, RecursionError):
                pass  # something nests, or a field is bytes, or it is no event
        try:
            parts = _parts(data, MAX_FIELDS)
            if isinstance(parts, dict):
                return {name: self.field(value) for name, value in parts.items()}
            return [self.field(value) for value in parts]
        except (ValueError, RecursionError, MemoryError):
            return MALFORMED

    def field(self, raw: msgspec.Raw) -> object:
        """A number, a text, a flat list, or something short. Raises ValueError for anything else."""
        data = memoryview(raw)
        entries = _entries(data)
        if entries is None:
            return _plain(data)
        if entries > MAX_LIST or entries > self._listed_left:
            raise ValueError("more than any step is about")
        try:
            flat = _flat.decode(data)
        except msgspec.ValidationError:
            if len(data) > self._nested_left:
                raise
        else:
            self._listed_left -= entries
            return flat
        self._nested_left -= len(data)
        return _plain(data)


def _parts(data: memoryview, limit: int) -> list[msgspec.Raw] | dict[str, msgspec.Raw]:
    """The entries of an array or a map, not decoded. Raises ValueError for more than that, or something else."""
    if (_entries(data) or 0) > limit:
        raise ValueError("more entries than any engine writes")
    kind = data[0]
    return _map.decode(data) if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF) else _array.decode(data)


def _entries(data: memoryview) -> int | None:
    """How many an array or a map says it has; None for anything else."""
    kind = data[0]
    if 0x80 <= kind <= 0x9F:
        return kind & 0x0F
    if kind in (0xDC, 0xDE):
        return int.from_bytes(data[1:3], "big")
    if kind in (0xDD, 0xDF):
        return int.from_bytes(data[1:5], "big")
    return None
