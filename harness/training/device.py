"""How a GPU computes while a network trains; a CPU is left as it is."""

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
def tf32(device: torch.device, wanted: bool) -> Iterator[None]:
    """Within, float32 products are TF32 where that is wanted; after it none are.

    What is watched and judged needs float32: an equilibrium's solve in TF32 may go round in a cycle short of its
    tolerance.
    """
    if device.type == "cuda":
        _switch_tf32(wanted)
    try:
        yield
    finally:
        if device.type == "cuda":
            _switch_tf32(False)


def _switch_tf32(on: bool) -> None:
    """By the older of torch's two kinds of switches: the compiler reads those, and refuses what only newer ones say."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
