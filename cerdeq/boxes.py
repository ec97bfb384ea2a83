"""Boxes: regions of inputs, and what bounds know of the values of a network."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """All tensors within `radius` of `center`, element by element. Both [B, ...]; the radius is at least 0.

    A box stores centre and radius instead of two ends. So no radius is the difference of two close numbers, which would
    lose digits in low precision and at small eps.
    """

    center: Tensor
    radius: Tensor

    @property
    def lower(self) -> Tensor:
        """The lower end, rounded to nearest."""
        return self.center - self.radius

    @property
    def upper(self) -> Tensor:
        """The upper end, rounded to nearest."""
        return self.center + self.radius

    def double(self) -> "Box":
        """Return the same numbers in float64."""
        return Box(self.center.double(), self.radius.double())


def outward_ends(box: Box) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper end, rounded outwards.

    A lower end of infinity and an upper one of -infinity become NaN, since a sum that has overflowed bounds nothing.
    """
    lower, upper, slack = box.lower, box.upper, 2 * torch.finfo(box.center.dtype).eps
    return lower - slack * lower.abs(), upper + slack * upper.abs()


def smaller_box(box: Box, low: Tensor, high: Tensor) -> Box:
    """Return the smaller of `box` and [low, high], rounded outwards, element by element."""
    limits = torch.finfo(low.dtype)
    center, half = (low + high) / 2, (high - low) / 2
    radius = half.clamp(min=0) + 4 * limits.eps * (low.abs() + high.abs()) + limits.tiny
    smaller = radius < box.radius
    return Box(torch.where(smaller, center, box.center), torch.where(smaller, radius, box.radius))


def clipped_ball(x: Tensor, eps: Tensor | float, lower: float = 0.0, upper: float = 1.0) -> Box:
    """Return `LinfBall` without checks and without outward rounding: for training, a function of tensors only."""
    low = torch.clamp(x - eps, min=lower)
    high = torch.clamp(x + eps, max=upper)
    return Box((low + high) / 2, (high - low) / 2)


def LinfBall(x: Tensor, eps: Fraction | float, lower: float = 0.0, upper: float = 1.0) -> Box:  # noqa: N802
    """Return the box of all images within `eps` of `x` whose pixels lie in [lower, upper], rounded outwards.

    Args:
        x: [B, ...], floating-point pixels in [lower, upper].
        eps: the l-infinity radius, in units of pixels.
        lower, upper: the range of pixels.

    Raises:
        TypeError: if x is not floating point.
        ValueError: if eps is negative or not finite, or if a pixel is out of range, as in a normalised image.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point pixels in [{lower}, {upper}], found {x.dtype}")
    radius = float(eps)
    if not 0 <= radius < float("inf"):
        raise ValueError(f"eps must be finite and at least 0, found {eps}")
    if not bool(((x >= lower) & (x <= upper)).all()):
        pixels = f"{x.min().item()} to {x.max().item()}"
        raise ValueError(f"x: pixels must lie in [{lower}, {upper}] (not normalised), found {pixels}")
    ball = clipped_ball(x, radius, lower, upper)
    limits = torch.finfo(x.dtype)
    return Box(ball.center, ball.radius + 4 * limits.eps * (x.abs() + radius) + limits.tiny)
