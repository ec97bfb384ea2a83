"""Weights of monotone equilibria as others publish them: tensors A, B, U and C in place of W, dense or convolutions.

The formats are those of github.com/eth-sri/CRAFT: MATLAB files and torch files of fully connected networks, and torch
files of convolutional ones. All become the dense network `monotone`.
"""

import io

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.monotone import MonotoneWeight, circular_matrix
from harness.common.errors import InputError, error_line

Tensors = dict[str, Tensor]

_MATLAB = b"MATLAB 5.0"
_NAMES = {"A.weight": "A", "B.weight": "B", "U.weight": "U", "U.bias": "u", "Wout.weight": "C", "Wout.bias": "c"}
_STRIDE, _PAD, _POOL = 3, 1, 2


def is_matlab(content: bytes) -> bool:
    """Return whether a file is one of MATLAB."""
    return content.startswith(_MATLAB)


def read_matlab(content: bytes) -> Tensors:
    """Return the arrays of a MATLAB file. Raises InputError."""
    from scipy.io import loadmat  # imported late, for it is slow

    try:
        arrays = loadmat(io.BytesIO(content))
    except Exception as error:
        raise InputError(f"found a damaged MATLAB file ({error_line(error)}), allowed: an undamaged file") from None
    return {name: torch.from_numpy(value) for name, value in arrays.items() if not name.startswith("__")}


def network_tensors(tensors: Tensors, modulus: float, shape: tuple[int, ...]) -> Tensors:
    """Return the tensors of the network `monotone` for images of `shape`, float32, W computed in float64.

    Raises InputError if the file does not hold A, B, U, u, C and c.
    """
    named = {name.split("linear_module.")[-1]: tensor.double() for name, tensor in tensors.items()}
    named = {_NAMES.get(name, name): tensor for name, tensor in named.items()}
    if missing := [name for name in _NAMES.values() if name not in named]:
        raise InputError(f"found no tensor {missing[0]}, allowed: a file with A, B, U, u, C and c of a monDEQ")
    a, b, u, c = (named[name] for name in ("A", "B", "U", "C"))
    bias = named["u"].flatten()
    if a.dim() == 2:
        weight = MonotoneWeight(modulus)(torch.stack([a, b]))
    else:
        weight, u, bias, c = _dense(named, modulus, shape)
    result = {
        "inject.weight": u, "inject.bias": bias, "equilibrium.weight": weight,
        "head.weight": c, "head.bias": named["c"].flatten(),
    }  # fmt: skip
    return {name: tensor.float() for name, tensor in result.items()}


def _dense(named: Tensors, modulus: float, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W, U, u and C of a convolutional network as matrices on its inner pixels: z is 0 on the border.

    Its kernels are normalised, A then scaled by the root of g and B by h; the image is padded circularly; the output
    is of means over 2x2 pixels.
    """
    pixels = torch.eye(shape[0] * shape[1] * shape[2]).double().view(-1, *shape)
    kernel = named["U"]
    injected = F.conv2d(F.pad(pixels, (_PAD,) * 4, mode="circular"), kernel, stride=_STRIDE)
    channels, image = len(kernel), (injected.shape[2], injected.shape[3])
    a = named["A"] / named["A"].norm() * named["g"].sqrt()
    b = named["B"] / named["B"].norm() * named["h"]
    a, b = circular_matrix(a, image), circular_matrix(b, image)
    weight = (1 - modulus) * torch.eye(len(a)).double() - a.mT @ a + b - b.mT
    inner = F.pad(torch.ones(channels, image[0] - 2 * _PAD, image[1] - 2 * _PAD), (_PAD,) * 4).flatten().bool()
    units = torch.eye(len(weight)).double()[inner].view(-1, channels, *image)
    head = F.avg_pool2d(units, _POOL).flatten(1) @ named["C"].mT
    bias = named["u"].view(-1, 1, 1).expand(channels, *image).flatten()
    return weight[inner][:, inner], injected.flatten(1).mT[inner], bias[inner], head.mT
