"""Check that libraries compute products in the precision of their operands, as the bounds assume."""

import functools
import os

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor


class InexactProductsError(RuntimeError):
    """Matrix products or convolutions round more than bounds count."""


_STRICT_VALUES = {
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
    "CUBLAS_EMULATE_SINGLE_PRECISION": "0",
    "CUBLAS_EMULATE_DOUBLE_PRECISION": "0",
}
"""Environment variables that allow reduced precision whatever torch's switches say, with the value that does not."""


def check_environment() -> None:
    """Raise InexactProductsError for an environment variable that allows products in reduced precision."""
    for name, strict in _STRICT_VALUES.items():
        if (value := os.environ.get(name, strict)).upper() != strict:
            raise InexactProductsError(
                f"{name}={value} lets libraries compute products in reduced precision, so bounds would not be sound: "
                f"unset it, or set it to {strict}"
            )


@functools.cache
def check_products(device: str) -> None:
    """Check that products of integers are exact on a device ("cpu", "cuda"). Call it within `counted_rounding`.

    The integers are so small that every order of summation is exact. Reduced precision, Winograd's transforms and
    fixed-point emulation give other results.

    Raises InexactProductsError if a product is not exact, and as `check_environment` does.
    """
    check_environment()
    exact = [
        _is_exact(device, dtype, images, weights)
        for dtype, bits in ((torch.float32, 13), (torch.float64, 40))
        for images, weights in _cases(dtype, bits)
    ]
    if not torch.stack(exact).all():
        raise InexactProductsError(
            f"matrix products or convolutions on the device {device!r} are computed in reduced precision, so bounds "
            "would not be sound: look for environment variables of oneDNN, cuBLAS or cuDNN that allow it"
        )


def check_worker_threads() -> None:
    """Raise InexactProductsError if one of this thread's worker threads on the CPU flushes subnormals to zero.

    Worker threads that torch starts after `torch.set_flush_denormal(True)` do so until they end.
    """
    if (threads := torch.get_num_threads()) == 1:
        return
    smallest = torch.finfo(torch.float64).tiny
    subnormal = torch.full((_GRAIN * threads,), smallest, dtype=torch.float64, device="cpu") * 0.5
    if not subnormal.all():
        raise InexactProductsError(
            "torch's worker threads flush subnormal numbers to zero, so bounds would not be sound: start a new process "
            "that does not call torch.set_flush_denormal(True)"
        )


_GRAIN = 2**15
"""Elements that torch gives to a thread on a CPU before it uses another one."""


def _cases(dtype: torch.dtype, bits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images [4, 16, 8, 8] and weights [16, 16, 3, 3] of integers, whose convolutions are exact.

    1. Sums of many: integers of up to `bits` bits by 1 and -1. One channel holds much larger integers, multiplied by
       0. This detects Winograd's transforms and fixed-point emulation.
    2. One product in a sum: images of odd integers that need every bit of the mantissa, by 1 or -1.
    3. The same with these integers as weights.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(-(2**bits), 2**bits, (4, 16, 8, 8))
    images[:, 0] *= 2 ** (bits // 2)
    weights = generator.choice([-1, 1], (16, 16, 3, 3))
    weights[:, 0] = weights[0] = 0
    above = int(2 / torch.finfo(dtype).eps)
    full_images, full_weights = (generator.integers(above // 2, above, like.shape) | 1 for like in (images, weights))
    return [
        (images, weights),
        (full_images, _one_in_each(generator, weights)),
        (_one_in_each(generator, images), full_weights),
    ]


def _one_in_each(generator: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Return an array [N, ...] of zeros with a single 1 or -1 in each of its N parts."""
    count, size = len(like), like[0].size
    array = np.zeros((count, size), like.dtype)
    array[np.arange(count), generator.integers(0, size, count)] = generator.choice([-1, 1], count)
    return array.reshape(like.shape)


def _is_exact(device: str, dtype: torch.dtype, images: np.ndarray, weights: np.ndarray) -> Tensor:
    """Return whether the convolution is exact by every function that computes it, a bool on the device."""
    windows = sliding_window_view(np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    patches, kernels = windows.transpose(0, 2, 3, 1, 4, 5).reshape(256, 144), weights.reshape(16, 144).T
    product = patches @ kernels
    convolution = product.reshape(4, 8, 8, 16).transpose(0, 3, 1, 2)
    transposed = weights.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1].copy()  # conv_transpose2d by it is conv2d by weights
    as_tensor = functools.partial(torch.tensor, dtype=dtype, device=device)
    x, a, b, b_transposed = map(as_tensor, (images, patches, kernels, kernels.T.copy()))
    computed_and_expected = [
        (F.conv2d(x, as_tensor(weights), padding=1), convolution),
        (F.conv_transpose2d(x, as_tensor(transposed), padding=1), convolution),
        (a @ b, product),
        (b_transposed @ a.T, product.T),
        (F.linear(a, b_transposed), product),
        (torch.bmm(a[None], b[None])[0], product),
    ]
    return torch.stack([(computed == as_tensor(expected)).all() for computed, expected in computed_and_expected]).all()
