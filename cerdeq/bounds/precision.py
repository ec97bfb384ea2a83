"""Arithmetic whose rounding errors are those that sound bounds count, and what training under autocast keeps exact."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


@contextmanager
def counted_rounding(device: str) -> Iterator[None]:
    """Within, sums of products are sums in some order, in the tensors' own precision.

    Off: autocast, TF32, and the libraries that may choose Winograd or FFT convolutions, NNPACK on a CPU and cuDNN on
    CUDA; what runs instead is a matrix product.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False, allow_tf32=False))
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        yield


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Within, products are in the precision of their factors, where training runs in bfloat16 otherwise."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
