"""How much memory is free, what an executable says that it needs, and what a call is seen to need."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

MB = 1e6
PROCESS = Path("/proc/self")
M_TRIM_THRESHOLD = -1  # of malloc.h


def executable_mb(compiled: Any) -> float:
    """What an executable holds at once, beside its arguments: temporaries and outputs."""
    memory = compiled.memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / MB


def free_mb(share: float = 0.85) -> float:
    """That share of the memory that is available on this machine, in megabytes; infinite where /proc is not."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return share * next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("MemAvailable"))


def growth_mb(call: Callable[[], Any]) -> float | None:
    """By how many megabytes this process grows at most while a call runs; None but on CPU and Linux.

    What earlier calls left in the allocator is given back before, so this is what a call needs beside what is held from
    call to call (parameters, moments, data), in whatever it is written; what the allocator keeps of memory freed within
    the call counts too, as the process does hold it. What another thread frees too late to be given back is not seen to
    grow, so the larger of two calls counts, after a first one that warms up.
    """
    if jax.default_backend() != "cpu":
        return None
    gc.collect()
    keeps_freed = "trim_threshold" in os.environ.get("GLIBC_TUNABLES", "")  # all of it, as the command line has it
    try:
        libc = ctypes.CDLL(None)
        if keeps_freed:
            libc.mallopt(M_TRIM_THRESHOLD, 0)
        try:
            call()
            return max(_growth_of(call, libc) for _ in range(2))
        finally:
            if keeps_freed:
                libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        return None


def _growth_of(call: Callable[[], Any], libc: ctypes.CDLL) -> float:
    time.sleep(0.05)
    libc.malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # the highest so far becomes what there is now
    before = _status_mb("VmRSS")
    call()
    return _status_mb("VmHWM") - before


def _status_mb(which: str) -> float:
    """What the process holds in memory now (``VmRSS``), or held at most (``VmHWM``)."""
    lines = (PROCESS / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(which))
