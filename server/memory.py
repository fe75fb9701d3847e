"""Keeps the C library from holding on to memory that Python has given back."""

import ctypes
import sys

from server.bounds import MIB

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def give_back() -> None:
    """Return large blocks to the kernel as soon as they are free. Elsewhere than with glibc, do nothing.

    By default, glibc raises its threshold whenever a large block is freed, up to 32 MiB, and gives each thread a heap
    of its own. Then each thread keeps the largest request that it has ever seen: on four threads, 160 MB after some
    uploads of 5 MiB. Python runs one thread at a time, so that one heap is enough.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 1 * MIB)
            mallopt(M_TRIM_THRESHOLD, 4 * MIB)
            mallopt(M_ARENA_MAX, 1)
