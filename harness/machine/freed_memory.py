"""Reuse freed memory while a trial runs, and return it to the system afterwards.

By default glibc maps every large tensor anew and unmaps it when it is freed, so that each training step faults all
pages: a third of CROWN-IBP's time was system time.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # glibc's malloc.h
_EVERYTHING = 2**31 - 1
_AT_ONCE = 2**28


@contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process within the block, and return it at the end. Does nothing without glibc."""
    library = ctypes.CDLL(None)
    is_glibc = hasattr(library, "malloc_trim")
    if not is_glibc or library.mallopt(_MMAP_THRESHOLD, _EVERYTHING) == 0:  # 0: it is older, and slower with the others
        yield
        return
    library.mallopt(_ARENA_MAX, 1)  # other arenas map large blocks whatever the thresholds
    library.mallopt(_TRIM_THRESHOLD, _EVERYTHING)
    library.mallopt(_TOP_PAD, _AT_ONCE)
    try:
        yield
    finally:
        library.malloc_trim(0)


def free_memory() -> None:
    """Free unused memory: captured graphs lie in reference cycles, and torch caches freed blocks."""
    gc.collect()
    torch.cuda.empty_cache()
