"""Boxes: the regions that bounds start from and pass on."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """All tensors within `radius` of `center`, element by element. Both [B, ...]; the radius is never negative.

    Centre and radius instead of lower and upper: a radius is never a difference of close numbers, which
    matters in low precision and at small eps.
    """

    center: Tensor
    radius: Tensor

    @property
    def lower(self) -> Tensor:
        """Lower end, rounded to nearest."""
        return self.center - self.radius

    @property
    def upper(self) -> Tensor:
        """Upper end, rounded to nearest."""
        return self.center + self.radius

    def double(self) -> "Box":
        """The same numbers in float64."""
        return Box(self.center.double(), self.radius.double())


def outward_ends(box: Box) -> tuple[Tensor, Tensor]:
    """Lower and upper end, rounded outwards."""
    lower, upper, slack = box.lower, box.upper, 2 * torch.finfo(box.center.dtype).eps
    return lower - slack * lower.abs(), upper + slack * upper.abs()


def narrowed(box: Box, low: Tensor, high: Tensor) -> Box:
    """`box`, replaced where that is smaller by [low, high], rounded outwards."""
    limits = torch.finfo(low.dtype)
    center, half = (low + high) / 2, (high - low) / 2
    radius = half.clamp(min=0) + 4 * limits.eps * (low.abs() + high.abs()) + limits.tiny
    smaller = radius < box.radius
    return Box(torch.where(smaller, center, box.center), torch.where(smaller, radius, box.radius))


def clipped_ball(x: Tensor, eps: Tensor | float, lower: float = 0.0, upper: float = 1.0) -> Box:
    """`LinfBall` without checks and without outward rounding, for training: a function of tensors only."""
    low = torch.clamp(x - eps, min=lower)
    high = torch.clamp(x + eps, max=upper)
    return Box((low + high) / 2, (high - low) / 2)


def LinfBall(x: Tensor, eps: Fraction | float, lower: float = 0.0, upper: float = 1.0) -> Box:  # noqa: N802
    """All images within `eps` of `x` (l-inf, pixel units) whose pixels lie in [lower, upper], rounded outwards.

    x: [B, ...], floating point, within [lower, upper]. Raises ValueError where it is not (an image that was already
    normalised, say), or where eps is negative or not finite, and TypeError where x is not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"LinfBall wants floating-point pixels in [{lower}, {upper}], found {x.dtype}")
    radius = float(eps)
    if not 0 <= radius < float("inf"):
        raise ValueError(f"eps must be finite and at least 0, found {eps}")
    if not bool(((x >= lower) & (x <= upper)).all()):
        raise ValueError(f"pixels must lie in [{lower}, {upper}], found {x.min().item()} to {x.max().item()}")
    ball = clipped_ball(x, radius, lower, upper)
    limits = torch.finfo(x.dtype)
    return Box(ball.center, ball.radius + 4 * limits.eps * (x.abs() + radius) + limits.tiny)
