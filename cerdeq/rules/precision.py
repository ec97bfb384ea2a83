"""Switches of torch's arithmetic: sound bounds count its rounding; parts of training must not run under autocast."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


@contextmanager
def counted_rounding(device: str) -> Iterator[None]:
    """Within, sums of products are sums in some order, in the tensors' own precision.

    This turns off autocast, TF32 and bfloat16 in place of float32, and the libraries that may choose Winograd or FFT
    convolutions: NNPACK on a CPU and cuDNN on CUDA. Matrix products take their place.
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
    """Within, cuDNN is on even within `counted_rounding`: for searches, which prove nothing.

    Without it CUDA convolves image by image.
    """
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
    """Within, products are in the precision of their factors, even if training runs in bfloat16."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
