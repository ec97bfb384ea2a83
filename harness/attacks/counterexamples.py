"""How adversarial points are stored: in the shortest form in which they are proved.

That is the signs of a corner, a whole number of 32767ths of eps for each pixel, or the point itself in float64.

The point of k at the image x = pixel / 255 is x + k r / 32767, clipped to [0, 1], in float64: three operations that
every machine rounds alike. r is eps less 2^-50, which is more than all that is rounded: x by 2^-54, r / 32767 and its
product with k by 2^-53 of at most 1 each, the sum by 2^-53, r itself by 2^-54. So the point lies in the exact ball.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import prod

import numpy as np
import torch
from torch import Tensor

LEVELS = 32767


def move_inside(point: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the nearest points in float64 that lie exactly within eps of pixel / 255 and within [0, 1]. x: as below.

    They are at most x + r, and at least x - r.
    """
    r = max(float(eps - Fraction(1, 2**50)), 0.0)
    return torch.minimum(torch.maximum(point.double(), x - r), x + r).clamp(0, 1)


def encode(point: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the k (int16) whose point is nearest to `point`. x: float64, as in `decode`."""
    nearest = torch.round((point.double() - x) / _step(eps))
    return nearest.clamp(-LEVELS, LEVELS).to(torch.int16)


def decode(k: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the points of k (int16) in float64, exactly within eps of pixel / 255 and within [0, 1].

    x: pixel / 255, rounded to float64, of the same shape; eps: above 2^-50 and at most 1.
    """
    return (x + k.double() * _step(eps)).clamp(0, 1)


def corners(k: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the corners of the clipped balls (int16, each -32767 or 32767) nearest to the points of k.

    k: int16; x: float64, as in `decode`.
    """
    low, high = (decode(torch.full_like(k, level), x, eps) for level in (-LEVELS, LEVELS))
    point = decode(k, x, eps)
    return torch.where(high - point < point - low, LEVELS, -LEVELS).to(torch.int16)


def pack(k: Tensor) -> Tensor:
    """Return what a file stores of k (int16): of a corner its signs, uint8 [N / 8] for N pixels; else k itself."""
    if bool((k.abs() < LEVELS).any()):
        return k.clone()  # files hold no views
    return torch.from_numpy(np.packbits((k > 0).numpy()))


def point_of(stored: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the point in float64 of what is stored: the point itself, or what `pack` returned. x: as in `decode`.

    Raises ValueError if it is of another type or size.
    """
    is_point = stored.dtype == torch.float64 and stored.shape == x.shape
    return stored if is_point else decode(unpack(stored, x.shape), x, eps)


def unpack(stored: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the k of an image of the given shape from what `pack` returned for it.

    Raises ValueError if it is of another type or size.
    """
    kind, size = (stored.dtype, tuple(stored.shape)), -(-prod(shape) // 8)
    if kind == (torch.int16, tuple(shape)):
        return stored
    if kind != (torch.uint8, (size,)):
        found = f"{stored.dtype} {list(stored.shape)}"
        raise ValueError(f"a counterexample is {found}, expected int16 {list(shape)} or uint8 [{size}]")
    signs = torch.from_numpy(np.unpackbits(stored.numpy(), count=prod(shape)).reshape(shape))
    return torch.where(signs.bool(), LEVELS, -LEVELS).to(torch.int16)


def _step(eps: Fraction) -> float:
    return max(float(eps - Fraction(1, 2**50)), 2.0**-1000) / LEVELS
