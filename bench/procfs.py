"""What the kernel knows of a process: CPU time and resident memory. Linux only; blocking by nanoseconds."""

import os
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED = 2


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far, ended ones too.

    The same time as utime + stime in /proc/PID/stat, which counts in ticks of 10 ms, in nanoseconds: the number of a process's
    CPU clock is made from its id as clock_getcpuclockid(3) does.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) * 1e-9


def resident_bytes(pid: int) -> int:
    """Its resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
