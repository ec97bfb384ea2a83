"""How adversarial points are stored: a whole number of 32767ths of eps for each pixel.

The point of k at the image x = pixel / 255 is x + k r / 32767, clipped to [0, 1], in float64: three operations that
every machine rounds alike. r is eps less 2^-50, which is more than all that is rounded: x by 2^-54, r / 32767 and its
product with k by 2^-53 of at most 1 each, the sum by 2^-53, r itself by 2^-54. So the point lies in the exact ball.
"""

from fractions import Fraction

import torch
from torch import Tensor

LEVELS = 32767


def encode(point: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the k (int16) whose point is nearest to `point`. x: float64, as in `decode`."""
    nearest = torch.round((point.double() - x) / _step(eps))
    return nearest.clamp(-LEVELS, LEVELS).to(torch.int16)


def decode(k: Tensor, x: Tensor, eps: Fraction) -> Tensor:
    """Return the points of k (int16) in float64, exactly within eps of pixel / 255 and within [0, 1].

    x: pixel / 255, rounded to float64, of the same shape; eps: above 2^-50 and at most 1.
    """
    return (x + k.double() * _step(eps)).clamp(0, 1)


def _step(eps: Fraction) -> float:
    return max(float(eps - Fraction(1, 2**50)), 2.0**-1000) / LEVELS
