"""Freed memory: what glibc keeps of it for the next tensor while a trial runs, and what is given
back after it.

By default glibc has every large tensor mapped from the system anew and given back when it is freed, so that each
training step touches its pages for the first time: system time was a third of CROWN-IBP's.
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
def kept_memory() -> Iterator[None]:
    """Within, freed memory stays with the process; after it, what is free goes back. Does nothing without glibc."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    if library.mallopt(_MMAP_THRESHOLD, _EVERYTHING) == 0:  # an older glibc, which other settings alone would slow down
        yield
        return
    library.mallopt(_ARENA_MAX, 1)  # other arenas map what is large, whatever the thresholds
    library.mallopt(_TRIM_THRESHOLD, _EVERYTHING)
    library.mallopt(_TOP_PAD, _AT_ONCE)
    try:
        yield
    finally:
        library.malloc_trim(0)


def free_memory() -> None:
    """Give back what nothing uses any more: captured graphs lie in cycles, and torch keeps what it once had."""
    gc.collect()
    torch.cuda.empty_cache()
