"""How a process that computes on large arrays keeps the memory that it has freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4    # of glibc's malloc.h
UNLIMITED = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory of any size; without glibc nothing happens.

    As it comes, it hands an array of more than 32 MB back to the system when it is freed, which
    then has to clear every page of the next one: that takes as long as the network on them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, UNLIMITED)
