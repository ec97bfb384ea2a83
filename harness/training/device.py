"""How a GPU computes while a network trains, and what a CPU must not use."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn


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
def whole_gradients(model: nn.Module) -> Iterator[None]:
    """Within, gradients of the model's weights are written into their own memory alone.

    oneDNN 3.13 (torch 2.15) writes past the end of that of a strided 1x1 convolution in channels-last format, on CPUs
    with AVX2 and without AVX-512; seen with fewer than 8 channels coming in. Networks that have one do without it.
    """
    strided = any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        for module in model.modules()
    )
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    if strided and torch.backends.cpu.get_cpu_capability() != "AVX512":
        onednn.enabled = False
    try:
        yield
    finally:
        onednn.enabled = before


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
