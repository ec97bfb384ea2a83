"""Weights of monotone equilibria as others publish them: tensors A, B, U and C in place of W, dense or convolutions.

The formats are those of github.com/eth-sri/CRAFT: MATLAB files and torch files of fully connected networks, and torch
files of convolutional ones. All become the dense network `monotone`.
"""

import io
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.monotone import MonotoneWeight, circular_matrix
from cerdeq.tracing.program import is_dense, is_equal
from harness.common.errors import InputError, error_line, require

Tensors = dict[str, Tensor]

_MATLAB = b"MATLAB 5.0"
_NAMES = {"A.weight": "A", "B.weight": "B", "U.weight": "U", "U.bias": "u", "Wout.weight": "C", "Wout.bias": "c"}
_MOST_NUMBERS = 2**26  # of a file; they take 512 MB
_STRIDE, _PAD, _POOL = 3, 1, 2


def is_matlab(content: bytes) -> bool:
    """Return whether a file is one of MATLAB."""
    return content.startswith(_MATLAB)


def read_matlab(content: bytes) -> Tensors:
    """Return the arrays of a MATLAB file. Raises InputError."""
    from scipy.io import loadmat, whosmat  # imported late, for they are slow

    try:
        count = sum(prod(shape) for _, shape, _ in whosmat(io.BytesIO(content)))
        require("numbers, unpacked", count, count <= _MOST_NUMBERS, f"at most {_MOST_NUMBERS:,}")
        arrays = loadmat(io.BytesIO(content))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"found a damaged MATLAB file ({error_line(error)}), allowed: an undamaged file") from None
    numbers = {name: value for name, value in arrays.items() if _has_numbers(value)}
    return {name: torch.from_numpy(value.astype(value.dtype.newbyteorder("="))) for name, value in numbers.items()}


def _has_numbers(value: Any) -> bool:
    """Return whether a variable of a MATLAB file is an array of numbers that torch has, too; others are left out."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.itemsize <= 16


def network_tensors(tensors: Tensors, modulus: float, shape: tuple[int, ...]) -> Tensors:
    """Return the tensors of the network `monotone` for images of `shape`, float32, W computed in float64.

    Raises InputError if the file does not hold A, B, U, u, C and c, real numbers whose shapes fit.
    """
    named = _by_letter(tensors)
    if missing := [name for name in _NAMES.values() if name not in named]:
        raise InputError(f"found no tensor {missing[0]}, allowed: a file with A, B, U, u, C and c of a monDEQ")
    try:
        if named["A"].dim() == 2:
            weight = MonotoneWeight(modulus)(torch.stack([named["A"], named["B"]]))
            u, bias, c = named["U"], named["u"].flatten(), named["C"]
        else:
            weight, u, bias, c = _dense(named, modulus, shape)
    except (RuntimeError, KeyError) as error:  # KeyError: of g and h
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named.items())
        allowed = "A and B [n, n], or kernels of a convolution with their scales g and h"
        raise InputError(f"found {found}, allowed: {allowed} ({error_line(error)})") from None
    result = {
        "inject.weight": u, "inject.bias": bias, "equilibrium.weight": weight,
        "head.weight": c, "head.bias": named["c"].flatten(),
    }  # fmt: skip
    return {name: tensor.float() for name, tensor in result.items()}


def _by_letter(tensors: Tensors) -> Tensors:
    """Return a file's tensors by the names of the papers, in float64. Raises InputError."""
    named: Tensors = {}
    for name, tensor in tensors.items():
        letter = name.split("linear_module.")[-1]
        letter = _NAMES.get(letter, letter)
        kind = f"{tensor.dtype} on {tensor.device.type}, {tensor.layout}".replace("torch.", "")
        is_real = is_dense(tensor) and tensor.device.type == "cpu" and not tensor.is_complex()
        require(name, kind, is_real, "a dense tensor of real numbers")
        stored, size = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
        require(name, f"{stored:,} bytes", size <= stored, f"{size:,}: each number is stored")
        numbers = tensor.double()
        is_same = is_equal(named.setdefault(letter, numbers), numbers)
        require(name, f"another tensor than the first {letter}", is_same, "the same twice")
    return named


def _dense(named: Tensors, modulus: float, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W, U, u and C of a convolutional network as matrices on its inner pixels: z is 0 on the border.

    Its kernels are normalised, A then scaled by the root of g and B by h; the image is padded circularly; the output
    is of means over 2x2 pixels.
    """
    pixels = torch.eye(shape[0] * shape[1] * shape[2]).double().view(-1, *shape)
    kernel = named["U"]
    injected = F.conv2d(F.pad(pixels, (_PAD,) * 4, mode="circular"), kernel, stride=_STRIDE)
    channels, image = len(kernel), (injected.shape[2], injected.shape[3])
    a = named["A"] / named["A"].norm() * named["g"].reshape(()).sqrt()
    b = named["B"] / named["B"].norm() * named["h"].reshape(())
    a, b = circular_matrix(a, image), circular_matrix(b, image)
    weight = (1 - modulus) * torch.eye(len(a)).double() - a.mT @ a + b - b.mT
    inner = F.pad(torch.ones(channels, image[0] - 2 * _PAD, image[1] - 2 * _PAD), (_PAD,) * 4).flatten().bool()
    units = torch.eye(len(weight)).double()[inner].view(-1, channels, *image)
    head = F.avg_pool2d(units, _POOL).flatten(1) @ named["C"].mT
    bias = named["u"].view(-1, 1, 1).expand(channels, *image).flatten()
    return weight[inner][:, inner], injected.flatten(1).mT[inner], bias[inner], head.mT
