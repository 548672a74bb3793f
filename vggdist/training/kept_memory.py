"""Keeps freed memory in this process for the next step.

Every step on a CPU allocates and frees the same hundreds of megabytes. The C library returns large
blocks to the system at once, and a fresh page costs more than the arithmetic on it: a measured
fifth of a step's time at 224 pixels (732,000 page faults).
"""

import ctypes

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """From now on, this process keeps memory that it frees; does nothing without glibc.

    The process never shrinks, and is a little larger than it would be: freed blocks are reused
    after the first few of each size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
