"""How a GPU, or a CPU, computes while a network trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch


def set_up(device: torch.device) -> None:
    """The same kernels in every run, none chosen by timing, and float32 products in float32."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = True
    inductor: Any = import_module("torch._inductor.config")  # here, since it takes seconds
    if hasattr(inductor, "deterministic"):
        inductor.deterministic = True
    _switch_tf32(False)


@contextmanager
def arithmetic_of_steps(device: torch.device, tf32: bool) -> Iterator[None]:
    """Within, as training's steps compute; after it, as IEEE 754 has it.

    On CUDA float32 products are TF32 where that is wanted. On a CPU subnormal numbers are 0 in this thread: they take
    many times as long, and an equilibrium whose W has entries near 0 makes them by the thousand. What is watched
    and judged needs neither: a solve in TF32 may go round in a cycle short of its tolerance.
    """
    on_cuda = device.type == "cuda"
    if on_cuda:
        _switch_tf32(tf32)
    else:
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if on_cuda:
            _switch_tf32(False)
        else:
            torch.set_flush_denormal(False)


def _switch_tf32(on: bool) -> None:
    """By the older of torch's two kinds of switches: the compiler reads those, and refuses what only newer ones say."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
