"""The C library's allocator, told to hold on to less: with its defaults a third of the picker's resident memory is free blocks.

glibc gives each thread an arena of its own, and none gives back what lies between blocks in use. Loading a tokenizer leaves 60 MB of
such holes; threads that encode long prompts leave as much again. Other C libraries know neither call and are left alone.
Called by the application: `share_one_arena` before there are threads, `give_back` once, when everything is loaded (tens of milliseconds).
"""

import ctypes
from typing import Final

_ARENA_MAX: Final = -8
"""M_ARENA_MAX of malloc.h."""


def share_one_arena() -> None:
    """All threads allocate from the main arena. They are few, and Python's own small objects do not come from it."""
    if mallopt := _function("mallopt"):
        mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Return free pages to the system, those in the middle of the heap included."""
    if malloc_trim := _function("malloc_trim"):
        malloc_trim(ctypes.c_size_t(0))


def _function(name: str) -> "ctypes._NamedFuncPointer | None":
    """One of glibc's own; None where the C library is another."""
    return getattr(ctypes.CDLL(None), name, None)
