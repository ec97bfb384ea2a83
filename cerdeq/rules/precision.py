"""Switches of torch's arithmetic: sound bounds count its rounding; parts of training must not run under autocast."""

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor


class InexactProductsError(RuntimeError):
    """Matrix products or convolutions round more than bounds count."""


@contextmanager
def counted_rounding(device: str) -> Iterator[None]:
    """Within, sums of products are sums in some order, in the tensors' own precision, with subnormal numbers.

    This turns off autocast, TF32 and bfloat16 in place of float32, and the libraries that may choose Winograd or FFT
    convolutions: NNPACK on a CPU and cuDNN on CUDA. Matrix products take their place. Most of these switches belong to
    the process: they stay off until the last thread has left.

    Raises InexactProductsError where libraries round more all the same, and for switches that are seen to be changed
    meanwhile.
    """
    with _switches.off(), _subnormal_numbers(), torch.autocast(device, enabled=False):
        check_products(device)
        yield


@contextmanager
def uncounted_rounding() -> Iterator[None]:
    """Within, cuDNN is on even within `counted_rounding`: for searches, which prove nothing.

    Without it CUDA convolves image by image. It stays off while another thread counts rounding.
    """
    with _switches.searching():
        yield


@contextmanager
def _subnormal_numbers() -> Iterator[None]:
    """Within, this thread does not replace subnormal numbers by 0, as after `torch.set_flush_denormal(True)`."""
    if _SMALLEST * _HALF != 0:
        yield
        return
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(True)


_SMALLEST, _HALF = sys.float_info.min, 0.5  # their product is subnormal


class _Switches:
    """Torch's switches of the process, and how many blocks of `counted_rounding` need them off."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0  # of all threads
        self.own = threading.local()
        self.restore = ExitStack()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch everything off; the last block of all threads restores it.

        Raises InexactProductsError if a precision is another one at the begin of a further block, or at the end: other
        code has changed it.
        """
        with self.lock:
            if not self.blocks:
                self._switch_off()
            _refuse_changed()
            was_searching = torch.backends.cudnn.enabled
            torch.backends.cudnn.enabled = False
            self._count(1)
        try:
            yield
            _refuse_changed()
            if torch.backends.cudnn.enabled:
                raise InexactProductsError("cuDNN was switched on while a bound was proved")
        finally:
            with self.lock:
                self._count(-1)
                if not self.blocks:
                    self.restore.close()
                elif was_searching and self._is_alone():
                    torch.backends.cudnn.enabled = True

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Switch cuDNN on within a block, if no other thread has one."""
        with self.lock:
            before = torch.backends.cudnn.enabled
            if self._is_alone():
                torch.backends.cudnn.enabled = True
        try:
            yield
        finally:
            with self.lock:
                if self._is_alone():
                    torch.backends.cudnn.enabled = before

    def _switch_off(self) -> None:
        self.restore.enter_context(torch.backends.nnpack.flags(enabled=False))
        self.restore.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False
        for operator in _OPERATORS:
            self.restore.callback(setattr, operator, "fp32_precision", operator.fp32_precision)
            operator.fp32_precision = "ieee"

    def _count(self, step: int) -> None:
        self.blocks += step
        self.own.blocks = getattr(self.own, "blocks", 0) + step

    def _is_alone(self) -> bool:
        """Return whether this thread has blocks, and no other one has."""
        return self.blocks == getattr(self.own, "blocks", 0) > 0


_OPERATORS: tuple[Any, ...] = (  # torch refuses to read wider switches once two of these differ
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)
"""What has a precision for float32 numbers; all of the process."""

_switches = _Switches()


def _refuse_changed() -> None:
    """Raise InexactProductsError if an operator may shorten float32 numbers."""
    if any(operator.fp32_precision != "ieee" for operator in _OPERATORS):
        raise InexactProductsError("a switch of torch's precision was changed while a bound was proved")


_LOOSENING = {
    "cpu": {"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT", "DNNL_DEFAULT_FPMATH_MODE": "STRICT"},
    "cuda": {"CUBLAS_EMULATE_SINGLE_PRECISION": "0", "CUBLAS_EMULATE_DOUBLE_PRECISION": "0"},
}
"""For each type of device: environment variables that loosen its products against torch's switches, with the value that
does not."""


def check_environment(device: str) -> None:
    """Raise InexactProductsError for an environment variable that shortens factors on a device ("cpu", "cuda")."""
    for name, allowed in _LOOSENING.get(device, {}).items():
        if (value := os.environ.get(name, allowed)).upper() != allowed:
            raise InexactProductsError(
                f"{name}={value} lets libraries compute products with fewer digits, so bounds would not hold: unset it"
            )


@functools.cache
def check_products(device: str) -> None:
    """Compute products of known numbers on a device ("cpu", "cuda"), within `counted_rounding`.

    Their sums are exact in the tensors' precision, in any order. Factors with fewer digits, Winograd's transforms, or
    fixed-point numbers relative to the largest one give others.

    Raises InexactProductsError for others, for threads that replace subnormal numbers by 0, and as
    `check_environment` does.
    """
    check_environment(device)
    exact = [_is_exact(device, dtype, bits) for dtype, bits in ((torch.float32, 13), (torch.float64, 40))]
    if not torch.stack(exact).all():
        raise InexactProductsError(
            f"products on the device {device!r} have fewer digits than their factors, so bounds would not hold: "
            "look for environment variables of oneDNN, cuBLAS or cuDNN that allow this"
        )
    subnormal = torch.full((_GRAIN * torch.get_num_threads(),), _SMALLEST, dtype=torch.float64, device=device) * 0.5
    if not subnormal.all():
        raise InexactProductsError(
            f"the device {device!r} replaces subnormal numbers by 0, so bounds would not hold: threads that torch "
            "starts after `torch.set_flush_denormal(True)` do so for good"
        )


_GRAIN = 2**15
"""Elements that torch gives to a thread on a CPU before it uses another one."""


def _is_exact(device: str, dtype: torch.dtype, bits: int) -> Tensor:
    """Return whether convolutions and products are exact, a bool on the device, for integers as factors.

    Sums of many: numbers of `bits` bits, times 1 and -1; one channel holds much larger numbers, which are multiplied
    by 0. Sums of one: numbers of all bits, first as images, then as weights, times 1 or -1.
    """
    draw = np.random.default_rng(0)
    images = draw.integers(-(2**bits), 2**bits, (4, 16, 8, 8))
    images[:, 0] *= 2 ** (bits // 2)
    weights = draw.choice([-1, 1], (16, 16, 3, 3))
    weights[:, 0] = weights[0] = 0
    largest = int(2 / torch.finfo(dtype).eps)  # all odd numbers below it have all digits
    long_images, long_weights = (draw.integers(largest // 2, largest, like.shape) | 1 for like in (images, weights))
    return torch.stack(
        [
            _are_exact(device, dtype, images, weights),
            _are_exact(device, dtype, long_images, _one_in_each(draw, weights)),
            _are_exact(device, dtype, _one_in_each(draw, images), long_weights),
        ]
    ).all()


def _one_in_each(draw: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Return an array [N, ...] of zeros with a single 1 or -1 in each of its N parts."""
    ones = np.zeros((len(like), like[0].size), like.dtype)
    ones[np.arange(len(like)), draw.integers(0, like[0].size, len(like))] = draw.choice([-1, 1], len(like))
    return ones.reshape(like.shape)


def _are_exact(device: str, dtype: torch.dtype, images: np.ndarray, weights: np.ndarray) -> Tensor:
    """Return whether convolutions of [4, 16, 8, 8] with [16, 16, 3, 3], and as many products, are exact."""
    windows = sliding_window_view(np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    rows, columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(256, 144), weights.reshape(16, 144).T
    transposed = weights.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    forward = np.einsum("bcijkl,ockl->boij", windows, weights)
    as_tensor = functools.partial(torch.tensor, dtype=dtype, device=device)
    x, w, w_transposed = as_tensor(images), as_tensor(weights), as_tensor(transposed.copy())
    a, b = as_tensor(rows), as_tensor(columns)
    pairs = [
        (F.conv2d(x, w, padding=1), forward),
        (F.conv_transpose2d(x, w_transposed, padding=1), forward),
        (a @ b, rows @ columns),
        (b.T.contiguous() @ a.T, columns.T @ rows.T),
        (F.linear(a, b.T.contiguous()), rows @ columns),
        (torch.bmm(a[None], b[None])[0], rows @ columns),
    ]
    return torch.stack([(computed == as_tensor(expected)).all() for computed, expected in pairs]).all()


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Within, products are in the precision of their factors, even if training runs in bfloat16."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
