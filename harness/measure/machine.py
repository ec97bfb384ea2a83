"""What the machine can do at most, and what a piece of work needs of it."""

import contextlib
import ctypes
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SIZES = {"cuda": 8192, "cpu": 1536}
_REPEATS = 5


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest product of two large square matrices, in floating-point operations a second."""
    size = _SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = math.inf
    for _ in range(_REPEATS):
        started = time.perf_counter()
        a @ b
        synchronise(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest


def operations(action: Callable[[], object]) -> int:
    """Floating-point operations of the products that an eager action runs."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def peak_memory(action: Callable[[], object], device: torch.device) -> float:
    """The most memory that an action takes beyond what was held before it, in MiB; NaN where nobody counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - held) / 2**20
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # the high-water mark begins anew
        before = _resident("VmRSS")
        action()
        return _resident("VmHWM") - before
    except OSError:
        return math.nan


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(name: str) -> float:
    """A line of this process's status, in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else math.nan
