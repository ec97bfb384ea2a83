"""Arithmetic whose rounding errors are those that sound bounds count, and what training under autocast keeps exact."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


@contextmanager
def counted_rounding(device: str) -> Iterator[None]:
    """Within, sums of products are sums in some order, in the tensors' own precision.

    Off: autocast, TF32 and bfloat16 in place of float32, and the libraries that may choose Winograd or FFT
    convolutions, NNPACK on a CPU and cuDNN on CUDA; what runs instead is a matrix product.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        _set_within(stack, torch.backends.cudnn, "enabled", False)
        for operators in _ROUNDING:  # by operator: torch refuses to read wider switches once two of them differ
            _set_within(stack, operators, "fp32_precision", "ieee")
        yield


@contextmanager
def uncounted_rounding() -> Iterator[None]:
    """cuDNN even within `counted_rounding`, for what proves nothing: without it CUDA convolves image by image."""
    with ExitStack() as stack:
        _set_within(stack, torch.backends.cudnn, "enabled", True)
        yield


_ROUNDING: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)


def _set_within(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack closes."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Within, products are in the precision of their factors, where training runs in bfloat16 otherwise."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
