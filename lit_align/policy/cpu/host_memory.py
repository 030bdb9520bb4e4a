"""Keeps the memory that a training step on a CPU has freed for the next step."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
"""The numbers of `M_TRIM_THRESHOLD` and `M_MMAP_MAX` in glibc's malloc.h."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells the C library to give no freed memory back to the system before the process ends.

    A step allocates again what the step before has freed. glibc gives blocks of more than 32 MiB, and the free end of
    its heap, back at once, and the system has to find and zero every page anew: 4 to 12 % of a step, measured on a
    virtual machine, the more the wider the model. The most that the process holds stays the same, to 2 %.

    Returns:
        Whether it was done: not under another C library, nor if `MALLOC_...` variables of glibc are set.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
