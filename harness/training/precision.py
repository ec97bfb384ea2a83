"""The precision of training steps on this machine: bf16 is slow on a CPU without instructions for it."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.settings import Precision

_ROUNDS = 5  # the first one also fills caches
_NOISE = 1.2  # two measurements of the same may differ by this factor


def choose_precision(setting: Precision, device: torch.device, was_bf16: bool | None) -> Precision:
    """Return the precision for the setting: for `auto`, bf16 where that is faster, else tf32 (on a CPU, float32).

    was_bf16: True if the trial's earlier epochs were trained in bf16, False if not, None if there are none.
    """
    if setting != "auto":
        return setting
    if was_bf16 is None:
        on_gpu = device.type == "cuda"
        was_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cost_of_bf16() < 1
    return "bf16" if was_bf16 else "tf32"


def describe_slow_bf16() -> str | None:
    """Return a warning if bf16 is slower than float32 on this CPU, None if not."""
    cost = cost_of_bf16()
    if cost <= _NOISE:
        return None
    return (
        f"bf16 takes {cost:.1f} times as long as float32 on this CPU (a convolution and a matrix product, uncompiled); "
        "precision float32 or auto avoids that"
    )


def cost_of_bf16() -> float:
    """Return how many times as long products and their gradients take in bf16 as in float32 on this CPU.

    It is measured, in less than a tenth of a second: which kernels are fast depends on more than the CPU's flags.
    """
    images = torch.ones(16, 32, 16, 16).to(memory_format=torch.channels_last)
    kernel, matrix = torch.ones(32, 32, 3, 3, requires_grad=True), torch.ones(256, 128, requires_grad=True)

    def seconds(is_bf16: bool) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            products: list[Tensor] = [F.conv2d(images, kernel, padding=1), images.flatten(1)[:, :256] @ matrix]
        sum(product.float().sum() for product in products).backward()  # type: ignore[union-attr]
        return time.perf_counter() - started

    single, half = (min(seconds(is_bf16) for _ in range(_ROUNDS)) for is_bf16 in (False, True))
    return half / single
