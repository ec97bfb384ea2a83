"""Interval bound propagation (IBP; Gowal et al. 2018): one forward pass with a box and an optional clean value.

Each rule maps Intervals to an Interval in centre-radius form: an affine layer is c' = W c + b, r' = |W| r.
Training costs three passes of each layer, of clean value, centre and radius.

With `sound` set the result contains the exact, real-arithmetic image of the box for the stored weights: every rule
widens the radius by a bound on its own rounding error. A sum of n products in any order is off by at most
gamma_n = n u / (1 - n u) times the sum of their absolute values (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1), and that term passes through the same |W| as the radius, so it costs nothing. This holds
for summation in any order, blocked and fused, but not for Winograd or FFT convolutions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cerdeq.boxes import Box


@dataclass(frozen=True)
class Interval:
    """A box (center, radius), both [B, ...], and optionally the clean input's value, of the same shape."""

    center: Tensor
    radius: Tensor
    clean: Tensor | None = None

    @property
    def box(self) -> Box:
        """The box alone."""
        return Box(self.center, self.radius)

    def of(self, examples: Tensor | slice) -> "Interval":
        """Return the box of some examples of the batch."""
        return Interval(self.center[examples], self.radius[examples])

    def to(self, dtype: torch.dtype) -> "Interval":
        """Return the same numbers in another precision, rounded to nearest."""
        clean = None if self.clean is None else self.clean.to(dtype)
        return Interval(self.center.to(dtype), self.radius.to(dtype), clean)

    def clean_value(self) -> Tensor:
        """Return the clean value. Raises ValueError if there is none."""
        if self.clean is None:
            raise ValueError("this pass carries no clean value")
        return self.clean


@dataclass
class Context:
    """What rules share during one pass.

    sound: whether to round outwards.
    follow: whether batch norm in training moves its running statistics.
    relu_shrinkage: a factor in (0, 1] of the upper end of unstable ReLUs; below 1 the boxes contain nothing for
        certain, and `sound` is refused with a ValueError.
    step: the name of the step.
    preactivations: by step, the box before each activation.
    saved: by step, values for its backward rule and for passes of other points of the same batch.
    """

    sound: bool
    follow: bool = True
    relu_shrinkage: float = 1.0
    step: str = ""
    preactivations: dict[str, Box] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.relu_shrinkage <= 1:
            raise ValueError(f"relu_shrinkage must lie in (0, 1], found {self.relu_shrinkage}")
        if self.sound and self.relu_shrinkage != 1:
            raise ValueError("relu_shrinkage below 1 is not sound: use it in training only")


class PrecisionError(ValueError):
    """Sums have too many terms to be rounded outwards in their precision."""


def widen_terms(ctx: Context, center: Tensor, radius: Tensor, terms: int) -> Tensor:
    """Return the radius of what goes into a sum of `terms` products, widened for its rounding if `ctx.sound`.

    It is widened by twice gamma on the magnitude of every value in the box; by the smallest normal number if that
    underflows, since a large factor may follow.
    """
    if not ctx.sound:
        return radius
    limits, size = torch.finfo(radius.dtype), center.abs() + 2 * radius
    slack = rounding_factor(terms, radius.dtype) * size
    return radius + torch.where(size == 0, 0, slack.clamp(min=limits.tiny))


def rounding_factor(terms: int, dtype: torch.dtype) -> float:
    """Return twice gamma of sums of `terms` products. Raises PrecisionError if there are too many."""
    factor = (terms + 4) * torch.finfo(dtype).eps
    if factor > 0.25:
        raise PrecisionError(f"{terms} terms are too many to round outwards in {dtype}; use float64")
    return factor


def widen_sum(ctx: Context, radius: Tensor, terms: int, offset: Tensor | None = None) -> Tensor:
    """Return the radius of a sum of `terms` products, widened for an added `offset` and underflow if `ctx.sound`."""
    if not ctx.sound:
        return radius
    limits = torch.finfo(radius.dtype)
    radius = radius + 2 * (terms + 4) * limits.tiny
    return radius if offset is None else radius + (terms + 4) * limits.eps * offset.abs()


def center_and_clean(x: Interval, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return `function` of centre and clean value: in one call on CUDA, without a copy of both on CPUs."""
    if x.clean is None:
        return function(x.center), None
    if not x.center.is_cuda:
        return function(x.center), function(x.clean)
    clean, center = function(torch.cat([x.clean, x.center])).chunk(2)
    return center, clean


def between(ctx: Context, low: Tensor, high: Tensor, clean: Tensor | None, magnitude: Tensor | float = 0.0) -> Interval:
    """Return the Interval from low to high, which are rounded to nearest; products of numbers up to `magnitude`."""
    center, radius = (low + high) / 2, (high - low) / 2
    if ctx.sound:
        limits = torch.finfo(center.dtype)
        radius = radius + 4 * limits.eps * (low.abs() + high.abs()) + 4 * limits.tiny * (1 + magnitude)
        center = torch.where(radius.isfinite(), center, 0)
        radius = torch.where(radius.isfinite(), radius, torch.inf)
    return Interval(center, radius, clean)


def rearrange(x: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    """Apply a function that only moves numbers to the centre, the radius and the clean value."""
    return Interval(function(x.center), function(x.radius), None if x.clean is None else function(x.clean))


def as_interval(x: Any, like: Interval) -> Interval:
    """Return x itself, or a constant as an Interval of radius 0, in the precision of `like`."""
    if isinstance(x, Interval):
        return x
    value = tensor_like(x, like.center)
    return Interval(value, torch.zeros_like(value), value)


def tensor_like(constant: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a constant as a tensor on the device of another one, in its precision if no other is given.

    A number is filled in on the device, since a copy from the host cannot be captured in a CUDA graph.
    """
    dtype = like.dtype if dtype is None else dtype
    if isinstance(constant, int | float):
        return torch.full((), constant, dtype=torch.float64, device=like.device).to(dtype)
    return torch.as_tensor(constant, dtype=dtype, device=like.device)


def is_wide(box: Box, **options: Any) -> Tensor:
    """Return where a box is no point."""
    return box.radius > 0
