"""Reads the counters of the pretended GPU and makes it fail, in the process that is on it."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

COUNTERS = ("launches", "captured", "graphs", "synchronisations")
"""Kernels and graphs launched, kernels put into graphs, graphs instantiated, waits of the host for the device."""


def read_counters() -> dict[str, int]:
    """Return what has been counted since the process began, by the names in COUNTERS."""
    library = ctypes.CDLL(None)
    return {name: ctypes.c_long.in_dll(library, f"pretend_{name}").value for name in COUNTERS}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Yield a dictionary that holds, after the block, what the block added to each counter."""
    before, added = read_counters(), dict[str, int]()
    yield added
    added |= {name: count - before[name] for name, count in read_counters().items()}


@contextmanager
def failing(fault: str) -> Iterator[None]:
    """Within, calls fail as `fault` says: one of those that README.md lists for PRETEND_FAULT."""
    switch = (ctypes.c_char * 64).in_dll(ctypes.CDLL(None), "pretend_faults")
    switch.value = fault.encode()
    try:
        yield
    finally:
        switch.value = b""
        torch.cuda.empty_cache()
