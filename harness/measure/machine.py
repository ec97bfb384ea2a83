"""Time, operations and memory of a piece of work, and the most that the machine can do."""

import contextlib
import ctypes
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SIZES = {"cuda": 8192, "cpu": 1536}
_REPEATS = 5


def median_seconds(steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each step. Steps take turns, so that a drift of the machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Return how long an action takes, until the device has done all of it."""
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of the fastest product of two large square matrices."""
    size = _SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, device) for _ in range(_REPEATS))


def operations(action: Callable[[], object]) -> int:
    """Return the floating-point operations of the products that an eager action runs."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def peak_memory(action: Callable[[], object], device: torch.device) -> float:
    """Return the most memory that an action takes beyond what was held before, in MiB; NaN where it is not counted."""
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


def _resident(name: str) -> float:
    """Return a line of this process's status, in MiB."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else math.nan
