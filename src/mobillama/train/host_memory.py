"""The C library's allocator, set for training on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep memory that tensors free in this process, where the C library is glibc.

    Left alone, glibc gives blocks above 32 MB back to the kernel and takes them again as fresh pages,
    each cleared on first touch, several times in every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, which has its own ways
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER)
