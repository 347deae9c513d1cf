"""Go's duration strings, as llm-d's files write them: "150ms", "2s", "1m30s". Pure."""

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_WHOLE = re.compile(rf"([+-]?)((?:{_PART.pattern})+)", re.ASCII)

EXAMPLES = 'a duration such as "50ms", "2s" or "1m30s"'


def parse_duration(text: str) -> float:
    """Seconds; negative if so written. Raises ValueError that says what is expected."""
    if text in {"0", "+0", "-0"}:
        return 0.0
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        raise ValueError(f"must be {EXAMPLES}, not {text!r}")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(whole[2]))
    return -seconds if whole[1] == "-" else seconds


def format_duration(seconds: float) -> str:
    """The shortest way to write it in one unit, to the nanosecond: 0.15 -> "150ms", 90.0 -> "90s"."""
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds}ns"
